"""Word lists. `UNSEEN_*` are real words kept out of training: only copying can get them right."""

from __future__ import annotations

ROOMS = (
    "kitchen", "bedroom", "living room", "bathroom", "hallway", "garage", "office", "attic",
    "basement", "dining room", "nursery", "guest room", "laundry room", "study", "porch",
    "workshop", "balcony", "garden", "playroom", "corridor",
)
UNSEEN_ROOMS = (
    "veranda", "orangery", "sauna", "boathouse", "pantry", "larder", "cloakroom", "gallery",
    "greenhouse", "stable", "chapel", "vestibule", "den", "barn", "loggia", "treehouse",
)
DEVICES = (
    "coffee machine", "kettle", "heater", "printer", "television", "humidifier", "dishwasher",
    "washing machine", "toaster", "freezer", "router", "water pump", "air purifier", "oven",
    "rice cooker", "christmas tree", "aquarium", "charger", "radio", "monitor", "dehumidifier",
    "3d printer", "electric blanket", "fountain",
)
UNSEEN_DEVICES = (
    "sandwich press", "projector", "soldering iron", "jukebox", "incubator", "sewing machine",
    "lava lamp", "ice crusher", "treadmill", "vacuum cleaner", "popcorn popper", "hair dryer",
    "bread slicer", "telescope", "synthesizer",
)
DOORS = (
    "front door", "back door", "garage door", "garden gate", "cellar door", "side door",
    "patio door", "main gate", "shed door",
)
PERSONS = (
    "anna", "tom", "maria", "lukas", "sophie", "ben", "mia", "paul", "emma", "jonas", "lea",
    "max", "nina", "oscar", "sara", "david", "julia", "felix", "laura", "simon", "grandma",
    "dad", "mum", "peter", "eva", "leo", "clara", "noah", "ella", "hugo",
)
UNSEEN_PERSONS = (
    "ingrid", "tobias", "priya", "mateo", "yusuf", "beatrice", "kwame", "svetlana", "rosalind",
    "dmitri", "fatima", "gregory", "hiroshi", "penelope", "wolfgang", "zainab",
)
LABELS = (
    "pasta", "eggs", "tea", "pizza", "laundry", "bread", "rice", "cake", "workout", "nap",
    "homework", "chicken", "potatoes", "soup", "coffee", "meeting", "yoga", "cookies", "study",
    "oven", "break", "bath", "dough", "roast",
)
UNSEEN_LABELS = (
    "lasagne", "sourdough", "meditation", "goulash", "pilates", "meringue", "risotto",
    "parking meter", "dumplings", "yoghurt", "quiche", "marinade", "origami", "chess match",
)
SCENES = (
    "movie night", "good night", "dinner", "party", "reading", "good morning", "relax", "away",
    "focus", "cooking", "romantic", "gaming", "holiday", "bedtime", "work", "cleaning",
)
UNSEEN_SCENES = (
    "thunderstorm", "karaoke", "sunset", "submarine", "campfire", "halloween", "picnic",
    "aurora", "carnival", "library",
)
ITEMS = (
    "milk", "bread", "eggs", "butter", "apples", "coffee", "rice", "cheese", "tomatoes", "salt",
    "toilet paper", "onions", "pasta", "olive oil", "bananas", "flour", "sugar", "batteries",
    "soap", "dog food", "orange juice", "yeast", "honey", "potatoes", "toothpaste",
)
UNSEEN_ITEMS = (
    "asparagus", "mustard", "cat litter", "maple syrup", "walnuts", "rosemary", "lightbulbs",
    "sparkling water", "broccoli", "peanut butter", "bin bags", "cardamom", "avocados",
)
MEDIA = (
    "jazz", "rock", "classical music", "the radio", "pop", "blues", "my playlist", "techno",
    "the news podcast", "piano music", "folk", "rain sounds", "reggae", "an audiobook", "hip hop",
    "christmas songs", "disco", "country music", "soul", "opera",
)
UNSEEN_MEDIA = (
    "bluegrass", "whale songs", "ska", "flamenco", "gregorian chants", "bossa nova", "metal",
    "birdsong", "synthwave", "the moonlight sonata", "swing", "fado",
)
VERBS = (
    "water", "clean", "check", "fix", "buy", "feed", "wash", "move", "bring", "call about",
    "paint", "sort", "open", "return", "charge", "pack", "order", "empty", "prepare", "look for",
)
OBJECTS = (
    "plants", "car", "dog", "bins", "windows", "letter", "bike", "tickets", "garden", "fish",
    "books", "parcel", "filter", "cat", "phone", "keys", "shoes", "lamp", "sofa", "roof",
)
UNSEEN_OBJECTS = (
    "hamster", "passport", "gutters", "piano tuner", "trombone", "hedge", "sandbox",
    "lawnmower", "suitcase", "beehive", "chimney", "telescope lens",
)
TASKS = (
    "take out the trash", "go to bed", "drink water", "lock up", "stretch", "do the dishes",
    "take my medicine", "leave for work", "pay the rent", "do my homework", "pick up the kids",
    "go for a run", "turn the heating down", "call the doctor", "send the report",
)
NEWS = (
    "dinner is ready", "time for bed", "we are leaving", "the guests are here",
    "breakfast is ready", "come downstairs", "lunch is on the table", "the taxi is here",
    "wake up", "please be quiet", "it is time for school", "the film starts now",
)
ADJECTIVES = ("ready", "here", "broken", "late", "empty", "full", "finished", "clean", "missing")
PLACES = ("london", "berlin", "paris", "madrid", "town", "the mountains", "vienna", "rome")
COLORS = ("red", "blue", "green", "yellow", "white", "orange", "purple", "pink", "warm white")
DAYS = ("today", "tomorrow", "monday", "tuesday", "wednesday", "thursday", "friday", "saturday",
        "sunday")
ONES = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
    "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen",
    "nineteen",
)
TENS = ("", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
