"""Questions about the board and the clock, and what an offline assistant has to decline."""

from __future__ import annotations

from lab.sample.grammar.commands import Form, _lines


def _get(what: str, text: str, weight: float = 0.6) -> Form:
    return Form("board.get", _lines(text), {"what": what}, weight=weight)


def _no(topic: str, text: str) -> Form:
    return Form("unsupported", _lines(text), {"topic": topic}, weight=0.6)


BOARD_FORMS: tuple[Form, ...] = (
    _get(
        "temperature",
        """
        how (warm|hot) is the board
        how (warm|hot) are you
        (what is|what's) the (board|cpu|chip|processor) temperature
        (what is|what's) the temperature of the (board|cpu|chip|processor)
        (board|cpu|chip|processor) temperature
        temperature of the (board|cpu|chip|processor)
        how (warm|hot) is the (cpu|chip|processor)
        are you too (warm|hot)
        is the (board|cpu|chip) too (warm|hot)
        tell me the (board|cpu|chip) temperature
        show the temperature of the (board|cpu)
        check the (board|cpu) temperature
        read the temperature sensor of the (board|cpu)
        how many degrees does the (board|cpu|chip) have""",
    ),
    _get(
        "memory",
        """
        (what is|what's) the free memory
        how much (memory|ram) is (free|left|used)
        how much free (memory|ram) is there
        how much (memory|ram) do you have [left]
        free (memory|ram)
        (memory|ram) usage
        (memory|ram) left
        (what is|what's) the (memory|ram) usage
        show [me] the (memory|ram)
        check the (memory|ram)
        is there enough (memory|ram)
        are you running out of (memory|ram)
        how full is the (memory|ram)
        tell me how much (memory|ram) is free
        tell me the (memory|ram) usage""",
    ),
    _get(
        "disk",
        """
        how much disk space is (free|left)
        how much (space|storage) is (free|left)
        how full is the (disk|card|sd card)
        free (disk|storage) space
        disk (space|usage)
        storage left
        (what is|what's) the free disk space
        (what is|what's) the disk usage
        is the (disk|card|sd card) full
        show [me] the disk (space|usage)
        check the (disk|storage|sd card)
        how much room is on the (disk|card|sd card)
        are you running out of (disk space|storage)
        tell me the disk usage""",
    ),
    _get(
        "cpu_load",
        """
        how busy is the (cpu|processor|board)
        how busy are you
        (what is|what's) the (cpu|processor|system) load
        (cpu|processor|system) load
        (cpu|processor) usage
        how high is the (cpu|processor|system) load
        show [me] the (cpu|processor) (load|usage)
        check the (cpu|processor|system) load
        how hard is the (cpu|processor|board) working
        how much (cpu|processor) is (used|in use)
        is the (cpu|processor|board) busy
        what is the load on the (cpu|board)
        tell me the (cpu|system) load
        are you busy""",
    ),
    _get(
        "uptime",
        """
        how long have you been (running|on|up)
        how long has the board been (running|on|up)
        (what is|what's) the uptime
        uptime
        when did you (start|boot)
        when did the board (start|boot)
        when was the last (boot|reboot|restart)
        show [me] the uptime
        since when are you (running|on|up)
        since when is the board (running|on|up)
        tell me the uptime
        check the uptime""",
    ),
    _get(
        "address",
        """
        (what is|what's) your (ip|address|ip address|network address)
        (what is|what's) the (ip|ip address|network address) [of the board]
        (ip|network) address
        which (ip|address|ip address) do you have
        show [me] the (ip|ip address|network address)
        tell me (your|the) (ip|ip address|network address)
        how can i reach you on the network
        where are you on the network
        which address does the board have
        i need (your|the) (ip|ip address|network address)
        under which address can i reach the board
        my ip""",
    ),
    Form(
        "clock.get",
        _lines("""
        what time is it
        (what is|what's) the time
        tell me the time
        how late is it
        the time please
        (do you know|can you tell me) what time it is
        time now
        current time
        what does the clock say
        give me the time
        show [me] the time"""),
        {"what": "time"},
        weight=0.6,
    ),
    Form(
        "clock.get",
        _lines("""
        what day is (it|today)
        (what is|what's) the date [today]
        which day is it [today]
        tell me the date
        what is today
        today's date
        which date do we have [today]
        do you know the date
        current date
        give me the date
        show [me] the date"""),
        {"what": "date"},
        weight=0.6,
    ),
    Form(
        "board.power",
        _lines("""
        (reboot|restart)
        (reboot|restart) the (board|system|machine)
        (reboot|restart) yourself
        do a (reboot|restart)
        i want you to (reboot|restart)
        the (board|system) should (reboot|restart)
        start the (board|system) again
        make the (board|system) (reboot|restart)
        boot again
        perform a (reboot|restart) [of the board]"""),
        {"action": "reboot"},
        timed=True,
        weight=0.8,
    ),
    Form(
        "board.power",
        _lines("""
        shut down
        shut down the (board|system|machine)
        shut the (board|system|machine) down
        shut yourself down
        power off
        power off the (board|system)
        power down the (board|system)
        turn yourself off
        switch yourself off
        turn off the board
        switch the board off
        the (board|system) should shut down
        do a shutdown
        i want you to shut down
        halt the (board|system)"""),
        {"action": "shutdown"},
        timed=True,
        weight=0.8,
    ),
    _no(
        "weather",
        """
        (what is|what's) the weather [like]
        (what is|what's) the weather in {place}
        how is the weather [in {place}]
        will it rain (today|tomorrow)
        will it rain in {place}
        is it going to (rain|snow) (today|tomorrow)
        weather forecast [for {place}]
        do i need an umbrella [today]
        how warm is it outside in {place}
        how cold will it get in {place}
        tell me the weather for tomorrow
        weather in {place}
        will the sun shine (today|tomorrow)""",
    ),
    _no(
        "news",
        """
        (what is|what's) in the news
        tell me the news
        read [me] the news
        any news
        what happened in the world [today]
        what are the headlines
        news from {place}
        what is new in the world
        show [me] the latest news
        what happened in {place} today
        give me the headlines
        what is going on in {place}""",
    ),
    _no(
        "web",
        """
        search the (web|internet) for {place}
        look up {place} on the (web|internet)
        google {place}
        find {place} on the (web|internet)
        search for {place} online
        what does the internet say about {place}
        open the website of {place}
        show me the website of {place}
        do a web search for {place}
        look for {place} online""",
    ),
    _no(
        "shopping",
        """
        order a pizza
        order {place} online
        buy me {place} online
        order something to eat
        get me a taxi
        order a taxi to {place}
        book a (table|hotel|room) in {place}
        book a flight to {place}
        buy a ticket to {place}
        reserve a (table|hotel) in {place}""",
    ),
    _no(
        "mail",
        """
        (read|check|show) my (mail|mails|email|emails)
        do i have (mail|new mail|new emails)
        send an email to {place}
        write an email to {place}
        any new (mail|emails)
        are there new emails
        open my (mail|inbox)
        what is in my inbox
        answer the last email
        delete my emails""",
    ),
    _no(
        "route",
        """
        how do i get to {place}
        how far is it to {place}
        show me the way to {place}
        when does the (bus|train) to {place} leave
        (what is|what's) the traffic like
        how is the traffic [to {place}]
        directions to {place}
        navigate to {place}
        when is the next (bus|train) [to {place}]
        how long does it take to get to {place}
        which (bus|train) goes to {place}""",
    ),
)
