"""Commands: each form is one meaning, with the wordings that people use for it.

Slots fill the answer; `fixed` is what the wording itself says. `timed` forms may carry "in ten
minutes" or "at 11 pm" at either end. Which wordings train and which are held out is not written
here: `split.py` decides by hash, so nobody picks the easy ones.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Form:
    """One meaning and its wordings."""

    do: str
    wordings: tuple[str, ...]
    fixed: dict[str, Any] = field(default_factory=dict)
    timed: bool = False
    weight: float = 1.0


def _lines(text: str) -> tuple[str, ...]:
    return tuple(line.strip() for line in text.strip().splitlines() if line.strip())


FORMS: tuple[Form, ...] = (
    Form(
        "light.set",
        _lines("""
        (turn|switch) {onoff} the {room} (lights|light)
        (turn|switch) the {room} (lights|light|lamp) {onoff}
        (turn|switch) {onoff} the (lights|light|lamp) in the {room}
        (turn|switch) the (lights|light) in the {room} {onoff}
        (turn|switch) the (lights|light) {onoff} in the {room}
        {room} (lights|light|lamp) {onoff}
        (lights|light) {onoff} in the {room}
        {onoff} with the {room} (lights|light)
        the {room} (lights|light) should be {onoff}
        the (lights|lamp) in the {room} should go {onoff}
        (put|set) the {room} (lights|light) {onoff}
        (make|get) the {room} (lights|lamp) {onoff}
        in the {room}, (turn|switch) the (lights|light) {onoff}
        in the {room} (turn|switch) {onoff} the (lights|light)
        flip the {room} (lights|light|lamp) {onoff}
        i want the {room} (lights|light) {onoff}
        i need the (lights|light) in the {room} {onoff}
        i would like the {room} (lights|lamp) to be {onoff}
        (lights|light) in the {room} {onoff}
        {room}: (lights|light) {onoff}
        for the {room}, (lights|light) {onoff}
        have the {room} (lights|light) {onoff}"""),
        timed=True,
        weight=2.2,
    ),
    Form(
        "light.set",
        _lines("""
        (set|dim|bring) the {room} (lights|light) to {level}
        (set|dim|change) the (lights|light|lamp) in the {room} to {level}
        (put|turn) the {room} (lights|light) (at|to) {level}
        {room} (lights|light|lamp) (at|to) {level}
        (lights|light) in the {room} (at|to) {level}
        {room} brightness {level}
        brightness of the {room} (lights|light) to {level}
        set the brightness in the {room} to {level}
        (dim|lower) the {room} to {level} brightness
        i want the {room} (lights|lamp) at {level}
        the {room} (lights|light) should be at {level}
        in the {room}, (dim|set) the (lights|light) to {level}
        make the {room} (lights|light) {level} bright
        make it {level} bright in the {room}
        give me {level} light in the {room}
        give me {level} brightness in the {room}
        change the {room} (light|lamp) brightness to {level}
        dim to {level} in the {room}
        turn the (lights|lamp) in the {room} (up|down) to {level}
        {level} light in the {room}"""),
        timed=True,
        weight=2.2,
    ),
    Form(
        "light.set",
        _lines("""
        make the {room} (lights|light) {color}
        (set|turn|change) the {room} (lights|light|lamp) to {color}
        (set|turn|change) the (lights|light) in the {room} to {color}
        {room} (lights|light) {color}
        {color} (lights|light) in the {room}
        i want {color} light in the {room}
        give me {color} light in the {room}
        the {room} (lights|lamp) should be {color}
        in the {room}, make the (lights|light) {color}
        turn the {room} {color}
        change the color of the {room} (lights|lamp) to {color}
        color the {room} {color}"""),
        timed=True,
    ),
    Form(
        "light.set",
        _lines("""
        (turn|switch) {onoff} all [the] lights
        (turn|switch) all [the] lights {onoff}
        all lights {onoff}
        (turn|switch) every (light|lamp) {onoff}
        lights {onoff} everywhere
        (turn|switch) {onoff} the lights everywhere
        (turn|switch) {onoff} every light in the house
        the whole house, lights {onoff}
        i want all [the] lights {onoff}"""),
        {"room": "all"},
        timed=True,
        weight=0.7,
    ),
    Form(
        "light.set",
        _lines("""
        (turn|switch) {onoff} the (lights|lights that are) {floor}
        (turn|switch) the lights {floor} {onoff}
        (turn|switch) the {floor} lights {onoff}
        (turn|switch) {onoff} the {floor} lights
        {floor} lights {onoff}
        lights {onoff} {floor}
        all lights {floor} {onoff}
        the lights {floor} should be {onoff}
        i want the lights {floor} {onoff}"""),
        timed=True,
        weight=0.8,
    ),
    Form(
        "all.set",
        _lines("""
        (turn|switch) {onoff} everything {floor}
        (turn|switch) everything {floor} {onoff}
        everything {floor} {onoff}
        everything {onoff} {floor}
        (turn|switch) {onoff} (all devices|every device) {floor}
        (power|shut) {onoff} everything {floor}
        {floor}, (turn|switch) everything {onoff}
        i want everything {floor} {onoff}
        everything {floor} should be {onoff}"""),
        timed=True,
        weight=0.8,
    ),
    Form(
        "all.set",
        _lines("""
        (turn|switch) {onoff} everything in the {room}
        (turn|switch) everything in the {room} {onoff}
        everything in the {room} {onoff}
        everything {onoff} in the {room}
        (turn|switch) {onoff} (all devices|every device) in the {room}
        in the {room}, (turn|switch) everything {onoff}
        i want everything in the {room} {onoff}
        everything in the {room} should be {onoff}
        all devices in the {room} {onoff}"""),
        timed=True,
    ),
    Form(
        "plug.set",
        _lines("""
        (turn|switch) {onoff} the {device}
        (turn|switch) the {device} {onoff}
        {device} {onoff}
        the {device} should be {onoff}
        the {device} should go {onoff}
        i want the {device} {onoff}
        i need the {device} {onoff}
        i would like the {device} to be {onoff}
        power {onoff} the {device}
        power the {device} {onoff}
        (put|get) the {device} {onoff}
        switch the plug of the {device} {onoff}
        (turn|switch) {onoff} the (plug|socket) of the {device}
        the (plug|socket) of the {device} {onoff}
        plug {device} {onoff}
        {onoff} with the {device}
        have the {device} {onoff}
        set the {device} to {onoff}"""),
        timed=True,
        weight=1.8,
    ),
    Form(
        "heat.set",
        _lines("""
        (set|turn) the heating in the {room} to {temp}
        (set|heat|warm) the {room} to {temp}
        set the {room} (heating|temperature|thermostat) to {temp}
        {room} (heating|temperature|thermostat) [to] {temp}
        heat the {room} up to {temp}
        i want {temp} in the {room}
        i would like it to be {temp} in the {room}
        make it {temp} in the {room}
        make the {room} {temp} warm
        the {room} should be {temp} warm
        in the {room}, set the heating to {temp}
        heating in the {room} to {temp}
        (bring|get) the {room} to {temp}
        change the temperature in the {room} to {temp}
        put the thermostat in the {room} (at|to) {temp}
        warm up the {room} to {temp}
        keep the {room} at {temp}"""),
        timed=True,
        weight=1.5,
    ),
    Form(
        "heat.set",
        _lines("""
        (turn|switch) {onoff} the heating in the {room}
        (turn|switch) the heating in the {room} {onoff}
        (turn|switch) the {room} heating {onoff}
        (turn|switch) {onoff} the {room} heating
        {room} heating {onoff}
        heating {onoff} in the {room}
        heating in the {room} {onoff}
        the heating in the {room} should be {onoff}
        i want the {room} heating {onoff}
        in the {room}, (turn|switch) the heating {onoff}
        put the heating in the {room} {onoff}"""),
        timed=True,
    ),
    Form(
        "heat.get",
        _lines("""
        how warm is it in the {room}
        how cold is it in the {room}
        (what is|what's) the temperature in the {room}
        (what is|what's) the {room} temperature
        temperature in the {room}
        tell me the temperature in the {room}
        how warm is the {room}
        how many degrees are there in the {room}
        how hot is it in the {room}
        is it (warm|cold) in the {room}
        check the {room} temperature
        which temperature does the {room} have
        read the thermometer in the {room}
        show the temperature of the {room}"""),
        weight=1.2,
    ),
    Form(
        "blind.set",
        _lines("""
        (open|raise|pull up|roll up) the {room} (blinds|blind|shutters)
        (open|raise) the (blinds|shutters) in the {room}
        {room} (blinds|shutters) (open|up)
        (blinds|shutters) (up|open) in the {room}
        i want the {room} (blinds|shutters) open
        the {room} (blinds|shutters) should be open
        in the {room}, (open|raise) the (blinds|shutters)
        (pull|roll|move) the {room} (blinds|shutters) up
        (blinds|shutters) in the {room} up
        get the {room} (blinds|shutters) up
        let the light into the {room}"""),
        {"state": "open"},
        timed=True,
    ),
    Form(
        "blind.set",
        _lines("""
        (close|lower|pull down|roll down) the {room} (blinds|blind|shutters)
        (close|lower) the (blinds|shutters) in the {room}
        {room} (blinds|shutters) (closed|down)
        (blinds|shutters) (down|closed) in the {room}
        i want the {room} (blinds|shutters) closed
        the {room} (blinds|shutters) should be closed
        in the {room}, (close|lower) the (blinds|shutters)
        (pull|roll|move) the {room} (blinds|shutters) down
        (blinds|shutters) in the {room} down
        get the {room} (blinds|shutters) down
        shut the {room} (blinds|shutters)"""),
        {"state": "closed"},
        timed=True,
    ),
    Form(
        "blind.set",
        _lines("""
        (set|move|bring) the {room} (blinds|shutters) to {level}
        (set|move) the (blinds|shutters) in the {room} to {level}
        open the {room} (blinds|shutters) to {level}
        {room} (blinds|shutters) (at|to) {level}
        put the {room} (blinds|shutters) at {level}
        the {room} (blinds|shutters) should be at {level}
        i want the {room} (blinds|shutters) at {level}
        in the {room}, set the (blinds|shutters) to {level}
        (blinds|shutters) in the {room} to {level}
        change the (blinds|shutters) in the {room} to {level}"""),
        timed=True,
    ),
    Form(
        "fan.set",
        _lines("""
        (turn|switch) {onoff} the {room} fan
        (turn|switch) the {room} fan {onoff}
        (turn|switch) {onoff} the fan in the {room}
        (turn|switch) the fan in the {room} {onoff}
        {room} fan {onoff}
        fan {onoff} in the {room}
        the {room} fan should be {onoff}
        i want the fan in the {room} {onoff}
        in the {room}, (turn|switch) the fan {onoff}
        fan in the {room} {onoff}
        put the {room} fan {onoff}"""),
        timed=True,
    ),
    Form(
        "fan.set",
        _lines("""
        (set|turn|put) the {room} fan to {speed}
        (set|turn|put) the fan in the {room} to {speed}
        {room} fan [to|on] {speed}
        run the {room} fan (on|at) {speed}
        fan in the {room} to {speed}
        the {room} fan should run (on|at) {speed}
        i want the {room} fan (on|at) {speed}
        in the {room}, set the fan to {speed}
        change the speed of the {room} fan to {speed}
        set the fan speed in the {room} to {speed}
        {speed} speed for the {room} fan
        run the fan in the {room} at {speed} speed"""),
        timed=True,
    ),
    Form(
        "media.play",
        _lines("""
        play {media} in the {room}
        play some {media} in the {room}
        put on {media} in the {room}
        put {media} on in the {room}
        start {media} in the {room}
        i want [to hear] {media} in the {room}
        i would like to listen to {media} in the {room}
        in the {room}, play {media}
        {media} in the {room}
        let me hear {media} in the {room}
        stream {media} in the {room}
        start playing {media} in the {room}
        the {room} should play {media}
        can we have {media} in the {room}
        play {media} on the {room} speaker"""),
        timed=True,
        weight=1.5,
    ),
    Form(
        "media.play",
        _lines("""
        play {media}
        play some {media}
        put on {media}
        put {media} on
        start playing {media}
        i want to (hear|listen to) {media}
        i would like to (hear|listen to) {media}
        let me (hear|listen to) {media}
        can we listen to {media}
        stream {media}
        let us hear some {media}
        i feel like (hearing|listening to) {media}"""),
        timed=True,
        weight=1.2,
    ),
    Form(
        "media.stop",
        _lines("""
        stop the music
        stop playing
        (turn|switch) off the music
        (turn|switch) the music off
        no more music
        end the music
        music off
        be quiet and stop the music
        stop the (song|player|playback)
        quit playing music
        i do not want any more music"""),
        weight=0.6,
    ),
    Form(
        "media.stop",
        _lines("""
        stop the music in the {room}
        (turn|switch) off the music in the {room}
        (turn|switch) the music off in the {room}
        no more music in the {room}
        {room} music off
        music off in the {room}
        in the {room}, stop the music
        end the music in the {room}
        stop playing in the {room}"""),
        timed=True,
        weight=0.7,
    ),
    Form(
        "media.pause",
        _lines("""
        pause
        pause the (music|song|playback|player)
        hold the music
        pause what is playing
        pause it for a moment
        take a break with the music
        music on pause
        put the (music|song) on pause
        halt the music"""),
        weight=0.5,
    ),
    Form(
        "media.next",
        _lines("""
        next (song|track|one)
        skip this (song|track|one)
        skip
        play the next (song|track|one)
        go to the next (song|track)
        i do not like this (song|track)
        another (song|track)
        jump to the next (song|track)
        skip to the next (song|one)
        play something else"""),
        weight=0.5,
    ),
    Form(
        "volume.set",
        _lines("""
        (set|turn|put) the volume to {level}
        volume [to|at] {level}
        {level} volume
        (change|bring) the volume to {level}
        make the volume {level}
        i want the volume at {level}
        the volume should be [at] {level}
        turn it (up|down) to {level}
        turn the volume (up|down) to {level}
        set the loudness to {level}
        sound (to|at) {level}
        set the sound to {level}
        put the speaker to {level}"""),
        timed=True,
        weight=1.2,
    ),
    Form(
        "volume.step",
        _lines("""
        louder
        (turn|make) it (louder|up)
        turn up the (volume|music|sound)
        turn the (volume|music|sound) up
        make the music louder
        a bit louder
        raise the volume
        (volume|sound) up
        i can not hear it
        increase the volume
        more volume
        it is too quiet"""),
        {"step": "up"},
        weight=0.6,
    ),
    Form(
        "volume.step",
        _lines("""
        quieter
        (turn|make) it (quieter|down)
        turn down the (volume|music|sound)
        turn the (volume|music|sound) down
        make the music quieter
        a bit quieter
        lower the volume
        (volume|sound) down
        it is too loud
        decrease the volume
        less volume
        not so loud"""),
        {"step": "down"},
        weight=0.6,
    ),
    Form(
        "timer.set",
        _lines("""
        set a timer for {duration}
        (start|make|create) a timer (for|of) {duration}
        timer for {duration}
        timer {duration}
        {duration} timer
        set a {duration} timer
        start a {duration} timer
        count down {duration}
        countdown of {duration}
        give me a timer (for|of) {duration}
        i need a timer (for|of) {duration}
        wake me in {duration}
        tell me when {duration} are over
        let me know in {duration}
        time {duration}
        put a timer on for {duration}
        new timer, {duration}
        ring in {duration}"""),
        weight=1.5,
    ),
    Form(
        "timer.set",
        _lines("""
        set a timer for {duration} called {label}
        set a timer called {label} for {duration}
        set a {label} timer for {duration}
        (start|make|create) a timer (for|of) {duration} named {label}
        (start|make|create) a timer named {label} (for|of) {duration}
        (start|make) a {label} timer (for|of) {duration}
        start a {duration} timer for the {label}
        set a {duration} timer called {label}
        {label} timer {duration}
        {label} timer for {duration}
        timer for the {label}, {duration}
        {duration} timer for the {label}
        timer {label} {duration}
        count down {duration} for the {label}
        i need a {label} timer (for|of) {duration}
        give me a timer of {duration} for the {label}
        time the {label} for {duration}
        new timer named {label}, {duration}
        the {label} needs {duration}"""),
        weight=2.0,
    ),
    Form(
        "timer.cancel",
        _lines("""
        (cancel|stop|delete|remove) the {label} timer
        (cancel|stop|delete) the timer called {label}
        (cancel|stop) the timer named {label}
        (cancel|stop) the timer for the {label}
        {label} timer off
        (cancel|stop) my {label} timer
        end the {label} timer
        turn off the {label} timer
        i do not need the {label} timer any more
        forget the {label} timer
        no more {label} timer"""),
    ),
    Form(
        "timer.get",
        _lines("""
        how much time is left
        how long is left on the timer
        how long will the timer run
        (what is|what's) left on the timer
        how many minutes are left
        time left
        check the timer
        when is the timer done
        show me the timer
        is the timer done"""),
        weight=0.6,
    ),
    Form(
        "alarm.set",
        _lines("""
        set an alarm (for|at) {clock}
        set the alarm (for|to) {clock}
        wake me [up] at {clock}
        alarm (for|at) {clock}
        alarm {clock}
        i need an alarm (for|at) {clock}
        i have to get up at {clock}
        i want to get up at {clock}
        get me up at {clock}
        make an alarm for {clock}
        {clock} alarm
        ring the alarm at {clock}
        wake up call at {clock}
        i must be up at {clock}
        put the alarm (at|to) {clock}"""),
        weight=1.3,
    ),
    Form(
        "alarm.set",
        _lines("""
        set an alarm {day} at {clock}
        set the alarm for {clock} {day}
        wake me [up] {moment}
        wake me [up] {day} at {clock}
        alarm {day} at {clock}
        alarm {day} {clock}
        {day} i have to get up at {clock}
        i want to get up {day} at {clock}
        i need an alarm {moment}
        get me up {day} at {clock}
        {day}, wake me at {clock}
        ring the alarm {day} at {clock}
        put the alarm {day} at {clock}"""),
        weight=1.3,
    ),
    Form(
        "alarm.cancel",
        _lines("""
        (cancel|delete|remove) (the|my) alarm
        (turn|switch) off (the|my) alarm
        (turn|switch) (the|my) alarm off
        no alarm please
        i do not need the alarm
        stop the alarm
        alarm off
        forget the alarm
        do not wake me up
        clear the alarm"""),
        weight=0.6,
    ),
    Form(
        "reminder.add",
        _lines("""
        remind me to {task} {when}
        remind me {when} to {task}
        {when} remind me to {task}
        set a reminder to {task} {when}
        set a reminder {when} to {task}
        (add|make|create) a reminder to {task} {when}
        (add|make) a reminder {when} to {task}
        i have to {task} {when}, remind me
        i need to {task} {when}, do not let me forget
        do not let me forget to {task} {when}
        {when} i have to {task}, remind me
        {when} i need a reminder to {task}
        reminder {when}: {task}
        reminder: {task} {when}
        tell me {when} to {task}
        {when} tell me to {task}
        i must not forget to {task} {when}
        help me remember to {task} {when}
        new reminder {when}, {task}
        note {when}: {task}"""),
        weight=2.5,
    ),
    Form(
        "reminder.add",
        _lines("""
        remind me {day} to {task}
        remind me to {task} {day}
        {day} remind me to {task}
        set a reminder to {task} {day}
        (add|make) a reminder {day} to {task}
        i have to {task} {day}, remind me
        do not let me forget to {task} {day}
        {day} i need a reminder to {task}
        reminder {day}: {task}
        reminder: {task} {day}
        help me remember to {task} {day}
        tell me {day} to {task}"""),
        weight=1.2,
    ),
    Form(
        "list.add",
        _lines("""
        (add|put) {item} (to|on) the [shopping] list
        (add|put) {item} (to|on) my [shopping] list
        we need {item}
        we need to buy {item}
        we are out of {item}
        {item} on the [shopping] list
        i need to buy {item}
        write {item} on the [shopping] list
        note that we need {item}
        shopping list: {item}
        add to the [shopping] list: {item}
        there is no more {item}
        buy {item}
        put {item} down for shopping
        do not forget {item} when shopping
        i have to get {item} at the shop"""),
        weight=1.4,
    ),
    Form(
        "list.get",
        _lines("""
        (what is|what's) on the [shopping] list
        read [me] the [shopping] list
        show [me] the [shopping] list
        what do we need to buy
        what do i have to buy
        tell me the shopping list
        [my] shopping list
        what is on my shopping list
        what do we need from the shop"""),
        weight=0.5,
    ),
    Form(
        "scene.set",
        _lines("""
        (start|set|activate) the {scene} scene
        (start|set|activate) the scene {scene}
        {scene} scene
        scene {scene}
        switch to {scene} mode
        {scene} mode
        (start|activate|turn on) {scene} mode
        set the house to {scene}
        set the scene to {scene}
        change to the {scene} scene
        i want the {scene} scene
        make it {scene} mode
        go to the {scene} scene
        load the scene {scene}
        it is time for the {scene} scene"""),
        timed=True,
        weight=1.3,
    ),
    Form(
        "lock.set",
        _lines("""
        lock the {door}
        lock up the {door}
        {door} locked
        make sure the {door} is locked
        the {door} should be locked
        i want the {door} locked
        please lock the {door} for me
        get the {door} locked
        put the lock on the {door}
        secure the {door}"""),
        {"state": "locked"},
        timed=True,
    ),
    Form(
        "lock.set",
        _lines("""
        unlock the {door}
        take the lock off the {door}
        {door} unlocked
        the {door} should be unlocked
        i want the {door} unlocked
        please unlock the {door} for me
        get the {door} unlocked
        make sure the {door} is unlocked
        undo the lock of the {door}"""),
        {"state": "unlocked"},
        timed=True,
    ),
    Form(
        "lock.get",
        _lines("""
        is the {door} locked
        is the {door} open
        is the {door} closed
        did i lock the {door}
        did i close the {door}
        check the {door}
        check if the {door} is locked
        is the {door} unlocked
        status of the {door}
        tell me if the {door} is locked
        what about the {door}
        have i locked the {door}
        did anyone open the {door}"""),
        weight=1.0,
    ),
    Form(
        "intercom.say",
        _lines("""
        announce in the {room} that {news}
        announce that {news} in the {room}
        say in the {room} that {news}
        tell the {room} that {news}
        tell everyone in the {room} that {news}
        let the {room} know that {news}
        broadcast to the {room} that {news}
        message to the {room}: {news}
        announcement for the {room}: {news}
        announce to the {room}: {news}
        in the {room}, announce that {news}
        inform the {room} that {news}"""),
        timed=False,
        weight=1.3,
    ),
    Form(
        "intercom.say",
        _lines("""
        tell {person} that {news}
        tell {person}: {news}
        let {person} know that {news}
        send {person} a message: {news}
        send a message to {person} that {news}
        send a message to {person}: {news}
        message {person} that {news}
        message to {person}: {news}
        say to {person} that {news}
        inform {person} that {news}
        {person} should know that {news}
        give {person} the message that {news}"""),
        timed=False,
        weight=1.5,
    ),
    Form(
        "intercom.call",
        _lines("""
        call {person}
        call {person} on the intercom
        ring {person}
        start a call with {person}
        i want to (talk|speak) to {person}
        connect me to {person}
        get {person} on the line
        phone {person}
        can i (talk|speak) to {person}
        let me (talk|speak) to {person}
        make a call to {person}
        put me through to {person}"""),
        timed=False,
        weight=1.0,
    ),
)
