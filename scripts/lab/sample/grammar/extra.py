"""More training wordings: written after the dev split showed where the first ones were too few.

They train only. None of their readings may be one of the dev or held-out wordings (a test checks
every one). Keys are the action and its place among the forms of that action, in file order.
"""

from __future__ import annotations


def _lines(text: str) -> tuple[str, ...]:
    return tuple(line.strip() for line in text.strip().splitlines() if line.strip())


EXTRA: dict[str, tuple[str, ...]] = {
    "light.set#0": _lines("""
        please have the (lights|lamp) {onoff} in the {room}
        (lights|lamp) of the {room} {onoff}
        let the {room} (lights|light) be {onoff}
        {onoff} with the (lights|lamp) in the {room}
        the light in the {room} has to be {onoff}
        i need {room} (lights|light) {onoff}
        the {room} needs the (lights|light) {onoff}
        get the (lights|lamps) in the {room} {onoff}"""),
    "light.set#1": _lines("""
        let the {room} (lights|lamp) shine at {level}
        {level} for the {room} (lights|lamp)
        {level} brightness in the {room}
        raise the {room} (lights|light) to {level}
        lower the {room} (lights|light) to {level}
        the {room} needs {level} light
        dim the {room} to {level}
        adjust the {room} (lights|lamp|brightness) to {level}
        get the {room} (lights|light) down to {level}
        i need {level} light in the {room}
        change the brightness in the {room} to {level}"""),
    "light.set#2": _lines("""
        {room} in {color}
        i need {color} light in the {room}
        let the {room} (lights|lamp) be {color}
        get the {room} (lights|lamp) to {color}
        change the {room} color to {color}
        set the color in the {room} to {color}
        the color of the {room} (lights|light) should be {color}
        paint the {room} {color}
        let the {room} shine in {color}"""),
    "light.set#3": _lines("""
        all (lamps|lights) in the house {onoff}
        every light {onoff}
        put all [the] lights {onoff}
        every lamp in the house should be {onoff}
        i need every light {onoff}
        the lights everywhere {onoff}"""),
    "light.set#4": _lines("""
        every light {floor} {onoff}
        {onoff} with the lights {floor}
        put the {floor} lights {onoff}
        i need the {floor} lights {onoff}
        the {floor} lights should be {onoff}
        (turn|switch) {onoff} all lights {floor}"""),
    "all.set#0": _lines("""
        all {onoff} {floor}
        every device {floor} {onoff}
        all devices {floor} should be {onoff}
        {onoff} with everything {floor}
        put everything {floor} {onoff}
        i need everything {onoff} {floor}
        all devices {onoff} {floor}"""),
    "all.set#1": _lines("""
        every device in the {room} {onoff}
        {onoff} with everything in the {room}
        put everything in the {room} {onoff}
        i need everything in the {room} {onoff}
        the whole {room} {onoff}
        {room}: everything {onoff}
        in the {room} everything should be {onoff}"""),
    "plug.set#0": _lines("""
        let the {device} be {onoff}
        {device}: {onoff}
        get the {device} to go {onoff}
        {device} (plug|socket) {onoff}
        the {device} has to be {onoff}
        (turn|switch) {onoff} my {device}
        (turn|switch) my {device} {onoff}
        i want {onoff} the {device}
        let me have the {device} {onoff}
        make the {device} go {onoff}
        change the {device} to {onoff}
        power for the {device} {onoff}"""),
    "heat.set#0": _lines("""
        {temp} in the {room}
        {temp} for the {room}
        the {room} at {temp}
        heat up the {room} to {temp}
        warm the {room} up to {temp}
        cool the {room} [down] to {temp}
        let it be {temp} in the {room}
        get it to {temp} in the {room}
        i need {temp} in the {room}
        change the {room} (heating|thermostat) to {temp}
        heater in the {room} to {temp}
        the {room} needs {temp}
        bring the {room} up to {temp}
        the temperature in the {room} should be {temp}"""),
    "heat.set#1": _lines("""
        {onoff} with the {room} heating
        {onoff} with the heating in the {room}
        let the {room} heating be {onoff}
        i need the heating in the {room} {onoff}
        get the {room} heating {onoff}
        the {room} heating should go {onoff}
        {room}: heating {onoff}
        heating of the {room} {onoff}"""),
    "heat.get#0": _lines("""
        is the {room} (warm|cold)
        tell me how (warm|hot|cold) it is in the {room}
        tell me how (warm|hot|cold) the {room} is
        what does the thermometer in the {room} say
        thermometer in the {room}
        {room} thermometer
        {room} temperature
        read the temperature in the {room}
        show me the temperature in the {room}
        check how (warm|cold) it is in the {room}
        how many degrees does the {room} have
        what temperature is it in the {room}
        check the thermometer in the {room}
        do you know how warm it is in the {room}"""),
    "blind.set#0": _lines("""
        {room} (blinds|shutters) should go up
        move up the {room} (blinds|shutters)
        let the {room} (blinds|shutters) go up
        open all (blinds|shutters) in the {room}
        the (blinds|shutters) in the {room} should be open
        put the {room} (blinds|shutters) up
        i need the (blinds|shutters) in the {room} open
        {room}: (blinds|shutters) up"""),
    "blind.set#1": _lines("""
        {room} (blinds|shutters) should go down
        move down the {room} (blinds|shutters)
        let the {room} (blinds|shutters) go down
        close all (blinds|shutters) in the {room}
        the (blinds|shutters) in the {room} should be closed
        put the {room} (blinds|shutters) down
        i need the (blinds|shutters) in the {room} closed
        shut the (blinds|shutters) in the {room}
        {room}: (blinds|shutters) down"""),
    "blind.set#2": _lines("""
        let the {room} (blinds|shutters) go to {level}
        lower the {room} (blinds|shutters) to {level}
        raise the (blinds|shutters) in the {room} to {level}
        close the {room} (blinds|shutters) to {level}
        i need the (blinds|shutters) in the {room} at {level}
        {level} for the {room} (blinds|shutters)
        (blinds|shutters) at {level} in the {room}
        change the {room} (blinds|shutters) to {level}"""),
    "fan.set#0": _lines("""
        {onoff} with the {room} fan
        {onoff} with the fan in the {room}
        let the {room} fan be {onoff}
        i need the {room} fan {onoff}
        the fan in the {room} should be {onoff}
        get the {room} fan {onoff}
        {room}: fan {onoff}
        the {room} fan should go {onoff}"""),
    "fan.set#1": _lines("""
        let the {room} fan run at {speed}
        fan speed {speed} in the {room}
        {room} fan speed {speed}
        i need the fan in the {room} at {speed}
        the fan in the {room} should be at {speed}
        {speed} fan in the {room}
        {room}: fan on {speed}
        switch the {room} fan to {speed}"""),
    "media.play#0": _lines("""
        let {media} play in the {room}
        {media} for the {room}
        we want [to hear] {media} in the {room}
        turn on {media} in the {room}
        some {media} in the {room}
        in the {room} i want {media}
        {room}: play {media}
        listen to {media} in the {room}
        get {media} playing in the {room}
        put some {media} on in the {room}"""),
    "media.play#1": _lines("""
        let {media} play
        we want to hear {media}
        start {media}
        some {media}
        get some {media} on
        put some {media} on
        can you play {media}
        listen to {media}
        i would like some {media}
        let us listen to {media}
        i want some {media}
        can we hear {media}"""),
    "media.stop#0": _lines("""
        no music
        stop the sound
        enough music
        stop that song
        finish the music
        shut off the music
        quit the music
        stop this music"""),
    "media.stop#1": _lines("""
        no music in the {room}
        the {room} music off
        stop the {room} music
        turn the {room} music off
        shut off the music in the {room}
        {room}: music off
        the music in the {room} should stop
        music in the {room} off"""),
    "media.pause#0": _lines("""
        make a pause
        pause playing
        music pause
        wait with the music
        pause this song
        hold the song
        hold the playback"""),
    "media.next#0": _lines("""
        the next song
        next please
        jump over this song
        change the song
        a different song
        skip the song
        go on to another song
        skip ahead
        jump ahead to the next track"""),
    "volume.set#0": _lines("""
        put the sound at {level}
        sound level {level}
        speaker at {level}
        speaker volume {level}
        turn the speaker to {level}
        {level} loudness
        raise the volume to {level}
        lower the volume to {level}
        let the volume be {level}
        i need the volume at {level}
        turn the sound (up|down) to {level}
        volume level {level}"""),
    "volume.step#0": _lines("""
        put the volume up
        bring the volume up
        raise the sound
        increase the sound
        make it a bit louder
        let it be louder
        play it louder
        more sound
        louder music
        louder, i can hear nothing
        the music is too quiet"""),
    "volume.step#1": _lines("""
        put the volume down
        bring the volume down
        lower the sound
        reduce the volume
        make it a bit quieter
        let it be quieter
        play it quieter
        less sound
        quieter music
        decrease the sound
        the music is too loud
        not that loud"""),
    "timer.set#0": _lines("""
        start a countdown of {duration}
        let a timer run for {duration}
        run a timer for {duration}
        countdown {duration}
        put on a timer for {duration}
        new timer for {duration}
        i want a timer for {duration}
        timer of {duration}
        ring after {duration}
        let me know when {duration} are over
        a timer for {duration}
        make it a timer of {duration}"""),
    "timer.set#1": _lines("""
        {label} timer of {duration}
        a {label} timer for {duration}
        run a {label} timer for {duration}
        i want a timer called {label} for {duration}
        new {label} timer for {duration}
        timer named {label} for {duration}
        timer called {label} of {duration}
        {duration} for the {label}
        start a timer for the {label} of {duration}
        {label}: {duration}
        {label} timer, {duration}
        let the {label} timer run for {duration}
        create a {duration} timer named {label}
        make a timer of {duration} for the {label}"""),
    "timer.cancel#0": _lines("""
        remove the timer called {label}
        {label} timer stop
        cancel {label} timer
        i want the {label} timer off
        switch off the {label} timer
        clear the {label} timer
        forget the timer for the {label}
        delete my {label} timer
        end the timer called {label}
        the {label} timer can stop"""),
    "timer.get#0": _lines("""
        how long is the timer still running
        how much is left on the timer
        how many minutes are left on the timer
        what does the timer say
        timer status
        is there time left on the timer
        show the time that is left
        tell me how much time is left
        how long do i have to wait for the timer"""),
    "alarm.set#0": _lines("""
        let me get up at {clock}
        i want an alarm at {clock}
        alarm clock (at|to) {clock}
        set the alarm clock to {clock}
        make sure i get up at {clock}
        i need to get up at {clock}
        i need to be up at {clock}
        wake up at {clock}
        i want to wake up at {clock}
        new alarm at {clock}
        ring at {clock}"""),
    "alarm.set#1": _lines("""
        {day} alarm at {clock}
        wake me at {clock} {day}
        alarm at {clock} {day}
        i need to get up {moment}
        i have to wake up {moment}
        {day} wake me up at {clock}
        get me up {moment}
        new alarm {moment}
        set the alarm {moment}
        make an alarm {moment}
        i want to wake up {day} at {clock}"""),
    "alarm.cancel#0": _lines("""
        no alarm
        do not ring the alarm
        end the alarm
        remove the alarm clock
        i want no alarm
        let me sleep, no alarm
        disable (the|my) alarm
        (the|my) alarm off
        do not wake me"""),
    "reminder.add#0": _lines("""
        i want to {task} {when}, remind me
        remember to {task} {when}
        make sure i {task} {when}
        {when} make me {task}
        {when} help me remember to {task}
        {when}, do not let me forget to {task}
        {when}, i need to {task}
        remind me: {task} {when}
        note that i have to {task} {when}
        note: {task} {when}
        new reminder: {task} {when}
        a reminder to {task} {when}
        a reminder {when} to {task}
        i should {task} {when}, remind me
        let me know {when} that i have to {task}
        reminder to {task} {when}"""),
    "reminder.add#1": _lines("""
        i need to {task} {day}, do not let me forget
        {day} i have to {task}, remind me
        add a reminder to {task} {day}
        {day} help me remember to {task}
        {day} tell me to {task}
        note {day}: {task}
        note that i have to {task} {day}
        new reminder {day}, {task}
        remind me {day}: {task}
        remember to {task} {day}
        reminder to {task} {day}
        make a reminder to {task} {day}"""),
    "list.add#0": _lines("""
        {item} is empty, put it on the list
        i need {item} from the shop
        i need {item}, put it on the list
        we have to buy {item}
        we have to get {item}
        i have to buy {item}
        get {item} from the shop
        get {item} when shopping
        {item} for the [shopping] list
        we are running out of {item}
        we have no more {item}
        note {item} for shopping
        do not forget to buy {item}
        the shop list needs {item}
        put on the [shopping] list: {item}
        remember {item} for the [shopping] list
        add {item}"""),
    "list.get#0": _lines("""
        the shopping list please
        which things are on the [shopping] list
        what should i buy
        what must we buy
        what do i need from the shop
        open the shopping list
        give me the shopping list
        tell me what is on the list
        let me hear the shopping list
        tell me what we need to buy"""),
    "scene.set#0": _lines("""
        {scene} please
        i want {scene} mode
        change to {scene} mode
        go to {scene} mode
        put the house in {scene} mode
        let us have the {scene} scene
        time for the {scene} scene
        load the {scene} scene
        (turn|switch) on the {scene} scene
        switch to the {scene} scene
        house in {scene} mode
        make it the {scene} scene
        it is time for {scene} mode
        set {scene}"""),
    "lock.set#0": _lines("""
        keep the {door} locked
        lock {door}
        secure my {door} and lock it
        {door}: lock
        i need the {door} locked
        put the {door} under lock
        close and lock the {door}
        have the {door} locked
        make the {door} secure
        let the {door} be locked"""),
    "lock.set#1": _lines("""
        open the lock of the {door}
        unlock {door}
        i need the {door} unlocked
        {door}: unlock
        have the {door} unlocked
        release the lock of the {door}
        let the {door} be unlocked
        make the {door} unlocked
        keep the {door} unlocked
        remove the lock from the {door}"""),
    "lock.get#0": _lines("""
        tell me if the {door} is (open|closed|unlocked)
        check if the {door} is (open|closed|unlocked)
        {door} status
        did i unlock the {door}
        did i open the {door}
        did anyone (lock|unlock|close) the {door}
        have i (closed|unlocked) the {door}
        can you see if the {door} is (locked|unlocked|open)
        do you know if the {door} is (locked|unlocked|closed)
        is my {door} (locked|unlocked|open)
        how is the {door}
        what is the status of the {door}"""),
    "intercom.say#0": _lines("""
        tell the {room}: {news}
        say to the {room} that {news}
        send a message to the {room}: {news}
        announcement in the {room}: {news}
        let everyone in the {room} know that {news}
        broadcast in the {room} that {news}
        in the {room}, say that {news}
        message for the {room}: {news}
        inform everyone in the {room} that {news}
        give the {room} the message that {news}
        make an announcement in the {room} that {news}"""),
    "intercom.say#1": _lines("""
        message for {person}: {news}
        let {person} know: {news}
        announce to {person} that {news}
        say to {person}: {news}
        send {person} the message that {news}
        {person} needs to know that {news}
        {person} has to know that {news}
        inform {person}: {news}
        make sure {person} knows that {news}
        pass on to {person} that {news}
        message {person}: {news}"""),
    "intercom.call#0": _lines("""
        ring up {person}
        ring {person} on the intercom
        ring {person} for me
        call {person} for me
        call up {person}
        give {person} a (call|ring)
        a call to {person}
        i need to (talk|speak) to {person}
        i have to (talk|speak) to {person}
        start talking to {person}
        get me {person}
        phone {person} for me
        connect {person}
        connect me with {person}
        make a call with {person}
        put {person} on the line"""),
    "board.get#0": _lines("""
        how warm is your (cpu|chip|processor)
        is the processor (warm|hot)
        is it hot in the chip
        what temperature does the (board|cpu|chip) have
        what temperature do you have
        your temperature
        read the (board|cpu) temperature
        show [me] the (board|cpu|chip) temperature
        tell me how (warm|hot) the (board|cpu) is
        are you (warm|hot)"""),
    "board.get#1": _lines("""
        how much memory does the board have
        tell me the free (memory|ram)
        is there (memory|ram) left
        is there any free (memory|ram)
        is the (memory|ram) full
        memory status
        what (memory|ram) is left
        what is left of the (memory|ram)
        used (memory|ram)
        do you have enough (memory|ram)"""),
    "board.get#2": _lines("""
        how much storage do you have
        how much disk space is used
        how much storage is used
        is there enough (disk space|storage)
        is there space on the (disk|card|sd card)
        free space on the (disk|card|sd card)
        storage (space|usage)
        show [me] the storage
        tell me how much (disk space|storage) is left
        what is left of the (disk space|storage)
        (disk|storage) status"""),
    "board.get#3": _lines("""
        how busy is your (cpu|processor)
        are you working hard
        is the board working hard
        tell me how busy you are
        tell me how busy the (cpu|processor) is
        load of the (cpu|processor|system)
        usage of the (cpu|processor)
        what is the processor usage
        what is the cpu usage
        how high is the load"""),
    "board.get#4": _lines("""
        for how long have you been (running|on|up)
        how long are you (running|up) already
        how long is the board running
        when was the board started
        when were you started
        time since the last (boot|restart|reboot)
        how long since the last (boot|restart|reboot)
        tell me how long you have been (running|on|up)
        running time of the board
        show how long the board has been (running|up)"""),
    "board.get#5": _lines("""
        give me your (ip|ip address|network address)
        your (ip|ip address|network address)
        what is the address of the board
        which ip does the board have
        show [me] your (address|network address)
        what ip do you have
        can i have the (ip|ip address)
        tell me the address of the board
        under which (ip|address) are you
        where can i reach you on the network"""),
    "clock.get#0": _lines("""
        what time do we have
        what is the time now
        please tell me the time
        how late is it now
        do you have the time
        can you tell me the time
        what is the current time
        time please
        say the time
        what does the clock show
        i want to know the time"""),
    "clock.get#1": _lines("""
        what is the current date
        what date is it
        which date is it [today]
        tell me what day it is
        date of today
        say the date
        day and date
        can you tell me the date
        what day do we have [today]
        today is which day
        i want to know the date"""),
    "board.power#0": _lines("""
        (reboot|restart) please
        (reboot|restart) now
        make a (reboot|restart)
        let the board (reboot|restart)
        please boot again
        let the system start again
        start yourself again
        i want a (reboot|restart)
        boot the (board|system) again
        i need a (reboot|restart) [of the board]"""),
    "board.power#1": _lines("""
        shutdown
        make a shutdown
        let the board shut down
        let the system power off
        switch off the board
        switch off the (system|machine)
        power yourself off
        i want a shutdown
        turn the (board|system) off
        the (board|system) should power off
        i need a shutdown
        halt"""),
    "unsupported#0": _lines("""
        does it rain in {place}
        is it raining [in {place}]
        is it sunny [in {place}]
        will it snow in {place}
        will it be (sunny|cold|warm) tomorrow
        how will the weather be [tomorrow]
        tell me the weather [in {place}]
        what will the weather be like in {place}
        weather (today|tomorrow)
        forecast for {place}
        rain in {place}
        do i need a jacket today
        is there snow in {place}"""),
    "unsupported#1": _lines("""
        what are the news
        the news please
        tell me the headlines
        are there any news
        what is new [in {place}]
        what happened in the world today
        show [me] the headlines
        latest news
        what is going on in the world
        news about {place}
        what is happening in {place}"""),
    "unsupported#2": _lines("""
        search for {place} on the (web|internet)
        search {place}
        find {place} online
        look online for {place}
        what does the web say about {place}
        search the net for {place}
        go to the website of {place}
        google for {place}
        find me {place} on the internet
        can you search the internet
        what can you find about {place} online"""),
    "unsupported#3": _lines("""
        order some food
        order food
        order me {place}
        book a taxi [to {place}]
        book a train to {place}
        book me a (flight|hotel) in {place}
        reserve a (room|table) for us
        buy a flight to {place}
        buy {place} on the internet
        get me a ticket to {place}
        order dinner online
        i want to order a pizza"""),
    "unsupported#4": _lines("""
        read me my (mail|email|emails)
        is there new mail
        are there any (mails|emails)
        write a mail to {place}
        send a mail to {place}
        answer my (mail|emails)
        delete the last email
        check the inbox
        open my (email|emails)
        show my inbox
        what is new in my mail"""),
    "unsupported#5": _lines("""
        how can i get to {place}
        which way is it to {place}
        the way to {place}
        take me to {place}
        what is the way to {place}
        how long is the way to {place}
        route to {place}
        when does the next (bus|train) leave
        how is the traffic in {place}
        is there traffic on the way to {place}
        the next (bus|train) to {place}
        how far away is {place}"""),
}


# Keyed by the first wording of the topic.
EXTRA_PLAIN: dict[str, tuple[str, ...]] = {
    "who are you": _lines("""
        tell me what you are
        say what you are
        who are you then
        who do i talk to
        what sort of (assistant|model|program) are you
        what are you exactly
        who is speaking
        please introduce yourself
        tell me more about yourself
        explain who you are"""),
    "do you need the internet": _lines("""
        do you need to be online
        can you work without (internet|wifi|a connection|a network)
        do you run without (internet|wifi|a network)
        do you run offline
        are you running in the cloud
        are you connected to the internet
        do i need to be online
        is wifi needed
        is a connection needed
        must i be online
        does this run in the cloud
        does it work without internet
        will you work without (internet|wifi)
        do you go online"""),
    "what can you do": _lines("""
        what can i use you for
        what do you know how to do
        what can i tell you to do
        what may i ask you
        what things can you do
        tell me your (skills|commands|functions)
        show me your (skills|commands|functions)
        which (skills|functions|abilities) do you have
        how do you help
        can you help me
        please help me
        give me some help
        i want to know what you can do"""),
    "thanks": _lines("""
        thank you for (your|the) help
        thanks so much
        ok, thank you
        great, thank you
        thanks, that is great
        perfect, thanks
        thanks again
        i thank you
        thank you again
        big thanks"""),
    "tell me a joke": _lines("""
        tell me another joke
        give me a joke
        say a joke
        can i hear a joke
        can you make me laugh
        i want to laugh
        something funny please
        do you have a joke
        have you got a joke
        a funny joke please
        make a joke"""),
    "hello": _lines("""
        hello you
        hi you
        good (morning|evening|afternoon)
        hello, good (morning|evening|day)
        hello my friend
        hi my friend
        hey assistant
        a good day to you
        hi again
        hello hello"""),
    "bye": _lines("""
        bye for now
        goodbye for now
        see you (tomorrow|then)
        i am going now
        i must go now
        bye assistant
        i leave now
        ok bye
        ok goodbye
        that is all for today"""),
    "how are you": _lines("""
        how are you feeling
        are you doing well
        are you feeling well
        is everything fine with you
        is everything ok
        how do things go
        how is it going today
        how was your day
        do you feel well
        and how are you"""),
    "what is edgekit": _lines("""
        what does edgekit mean
        what is edgekit about
        what does the edgekit project do
        explain what edgekit is
        tell me what edgekit is
        tell me what edgekit does
        what do people use edgekit for
        why do i need edgekit
        who uses edgekit
        edgekit, what is that
        how does edgekit work"""),
    "who made you": _lines("""
        who is your creator
        who has (made|built|trained|programmed) you
        how were you programmed
        how did they make you
        where were you built
        who wrote you
        how much time did your training take
        how long did it take to train you
        which people made you
        who do you come from"""),
    "how big are you": _lines("""
        how many weights are you made of
        how many layers are in you
        how many (layers|parameters|weights) have you got
        how big is your model
        how small is this model
        how large is this model
        are you big
        are you small
        what is the number of your (weights|parameters)
        your size"""),
    "what does 4-bit mean": _lines("""
        what is the meaning of 4-bit
        what does it mean to quantize a model
        tell me about 4-bit
        tell me what quantization is
        explain 4 bits
        explain what 4-bit means
        why is a model quantized
        why do we use 4 bits
        how does 4-bit work
        what are 4 bits
        what is the use of quantization
        what is 4 bit quantization"""),
    "where do you run": _lines("""
        what do you run on
        on which (boards|computers|hardware) do you run
        which (computers|hardware) do you support
        do you run on my computer
        can you run on my board
        what kind of board do i need
        does this run on a raspberry pi
        does it work on a raspberry pi
        is a raspberry pi enough
        where does edgekit run
        which boards can run you"""),
    "do you (store|keep|save) what i say": _lines("""
        do you send what i say (anywhere|somewhere|to anyone)
        do you keep my data
        do you (store|save) my data
        do you listen to me
        do you hear everything
        is anyone listening
        can anyone read what i say
        is what i say private
        who gets my data
        what do you do with my data
        will you share what i say
        are you spying on me"""),
    "what is your (licence|license)": _lines("""
        what licence do you have
        what license are you under
        which licence is this
        tell me your (licence|license)
        what is the price
        do you cost money
        are you free to use
        can i change you
        can i use you in a product
        is the code open source
        may i use you for free"""),
    "which languages do you (speak|know|understand)": _lines("""
        what languages can you speak
        which languages can you understand
        do you know (german|french|spanish|english)
        do you speak another language
        do you speak other languages
        is english your only language
        what is your language
        can you understand (german|french|spanish|english)
        may i talk to you in (german|french|spanish)
        what language do you understand"""),
    "how old are you": _lines("""
        what age are you
        when were you created
        when were you built
        which day were you born
        which year were you born
        how long do you exist
        are you (old|young)
        do you have a birthday
        when did you come into the world
        tell me when you were born"""),
    "that was wrong": _lines("""
        that is not correct
        that was not right
        that was not what i said
        this is not what i meant
        this is not right
        you were wrong
        you are mistaken
        it is wrong
        no that is not right
        you do not understand me
        that was a mistake
        a wrong answer"""),
    "well done": _lines("""
        great job
        good answer
        nice job
        you are nice
        you are the best
        you did well
        you did a good job
        that was very good
        that was nice
        really good
        you are so smart
        you are very clever"""),
    "are you human": _lines("""
        are you a living person
        are you a program
        are you an ai
        are you a real human
        do i talk to a (human|person|machine|robot)
        is this a (human|person|robot|machine)
        do you feel something
        do you have a body
        are you made of flesh
        is a real person there"""),
    "why are your answers so short": _lines("""
        why do you say so little
        why is your answer so short
        can you give longer answers
        can you answer longer
        can you tell me a story
        write something longer
        write a letter
        give me more detail
        say more
        i want a longer answer
        write a long text"""),
    "do you know everything": _lines("""
        do you know about (maths|everything)
        can you solve an equation
        can you write a program
        what do you know about the world
        are you as clever as chatgpt
        who was the first president
        what is the capital of (spain|italy|germany)
        can you answer all questions
        can you answer everything
        help me with my homework
        do you know (politics|sports)
        teach me (history|science|maths)"""),
    "how do i start you": _lines("""
        how do i start you tomorrow
        how can i start the chat
        how do i come back to you
        how do i open you
        which command do i need to start you
        what do i type to start you
        what do i type to chat
        how do i chat with you
        how do i start edgekit
        what command opens the chat
        how can i run you again"""),
    "can i use (another|a different) model": _lines("""
        can i run a (bigger|larger|better) model
        can i convert another model
        can edgekit convert my model
        can you convert my own model
        how do i get another model
        how do i put another model on my board
        how can i use a different model
        are there other models
        are there (bigger|larger|better) models
        do other models work
        i want another model
        what about other models"""),
    "how fast are you": _lines("""
        how fast do you answer
        how fast can you answer
        what time do you need to answer
        are you quick
        how much time do you need to answer
        why does it take so long
        why do you take so long
        how fast is your answer
        can you be faster
        how slow are you
        how long do you take"""),
    "what is your favourite (color|colour)": _lines("""
        what is the color you like best
        do you like a color
        which color is your favourite
        what is the best color
        which color do you like most
        do you like (red|blue|green)
        say your favourite color
        name your favourite (color|colour)"""),
    "are you hungry": _lines("""
        do you like to eat
        what would you like to eat
        do you want some (pizza|cake|coffee|food)
        do you get hungry
        what do you drink
        do you want to eat
        what food do you like
        can you eat
        do you ever eat"""),
    "do you sleep": _lines("""
        do you ever rest
        can you sleep
        do you get tired
        do you sleep at night
        are you sleeping
        when do you rest
        are you still awake
        do you ever dream
        are you ever tired
        how long do you sleep"""),
    "good night": _lines("""
        good night assistant
        i want to sleep now
        i go to sleep now
        i am very tired
        time for me to sleep
        have a nice night
        i am off to bed
        sleep tight
        i need to sleep now"""),
    "ok": _lines("""
        ok then
        that is ok
        that is good
        all fine
        fine with me
        good then
        i understand
        yes, good
        very good then
        okay, fine"""),
    "never mind": _lines("""
        forget that
        do not do it
        do not do anything
        leave that
        drop that
        no, nothing
        not any more
        it is not important
        stop, forget it
        i do not want it any more
        no, leave it"""),
    "what is your name": _lines("""
        what name did they give you
        what do people call you
        how do people call you
        tell me what your name is
        say your name
        have you got a name
        which name did you get
        do you have your own name
        how may i call you
        i want to know your name"""),
}
