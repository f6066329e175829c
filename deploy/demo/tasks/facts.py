"""A table of everyday facts, by relation: what is asked about, and what is true of it."""

HOMES = {
    "a fish": "in the water", "a bee": "in a hive", "a spider": "in a web", "a bear": "in the forest",
    "a camel": "in the desert", "a penguin": "in Antarctica", "a polar bear": "in the Arctic",
    "a whale": "in the ocean", "a frog": "by a pond", "a mole": "under the ground",
    "a monkey": "in the jungle", "a lion": "in the savanna", "a horse": "in a stable", "a pig": "in a sty",
    "a hen": "in a coop", "a crab": "on the beach", "an ant": "in an anthill", "a bat": "in a cave",
    "a squirrel": "in a tree", "a rabbit": "in a burrow", "a kangaroo": "in Australia",
    "a beaver": "by a river",
    "a goat": "in the mountains", "a dog": "in a kennel",
}  # fmt: skip

SOUNDS = {
    "a dog": "barks", "a cat": "meows", "a cow": "moos", "a sheep": "bleats", "a lion": "roars",
    "a duck": "quacks",
    "a pig": "grunts", "a horse": "neighs", "a frog": "croaks", "a snake": "hisses", "an owl": "hoots",
    "a wolf": "howls", "a bee": "buzzes", "a rooster": "crows", "a mouse": "squeaks", "a donkey": "brays",
    "a bell": "rings", "a clock": "ticks", "a bird": "sings",
}  # fmt: skip

YOUNG = {
    "cat": "a kitten", "dog": "a puppy", "cow": "a calf", "horse": "a foal", "sheep": "a lamb",
    "pig": "a piglet", "goat": "a kid", "hen": "a chick", "duck": "a duckling", "goose": "a gosling",
    "swan": "a cygnet", "lion": "a cub", "kangaroo": "a joey", "frog": "a tadpole", "deer": "a fawn",
    "butterfly": "a caterpillar", "owl": "an owlet", "eagle": "an eaglet",
}  # fmt: skip

COLOURS = {
    "a banana": "yellow", "a lemon": "yellow", "the sun": "yellow", "grass": "green", "a cucumber": "green",
    "a leaf in summer": "green", "snow": "white", "milk": "white", "salt": "white", "a swan": "white",
    "coal": "black", "a crow": "black", "a tyre": "black", "the sky": "blue", "the sea": "blue",
    "a carrot": "orange", "a pumpkin": "orange", "blood": "red", "a tomato": "red", "a strawberry": "red",
    "a fire engine": "red", "an elephant": "grey", "a mouse": "grey", "a flamingo": "pink", "a pig": "pink",
    "a plum": "purple", "chocolate": "brown", "coffee": "brown",
}  # fmt: skip

OPPOSITES = {
    "hot": "cold", "big": "small", "fast": "slow", "high": "low", "hard": "soft", "wet": "dry",
    "full": "empty",
    "open": "closed", "old": "young", "rich": "poor", "happy": "sad", "strong": "weak", "heavy": "light",
    "loud": "quiet", "clean": "dirty", "early": "late", "long": "short", "wide": "narrow", "deep": "shallow",
    "sweet": "sour", "thick": "thin", "day": "night", "left": "right", "up": "down", "inside": "outside",
    "true": "false", "cheap": "expensive", "safe": "dangerous",
}  # fmt: skip

USES = {
    "a knife": "cut bread", "a pen": "write", "an umbrella": "keep off the rain", "a key": "open a lock",
    "a needle": "sew clothes", "a broom": "sweep the floor", "a hammer": "drive in nails",
    "a saw": "cut wood",
    "a towel": "dry your body", "soap": "wash your hands", "a clock": "tell the time",
    "a thermometer": "measure temperature", "a ruler": "measure length", "a lamp": "light a room",
    "a fridge": "keep food cold", "an oven": "bake a cake", "a kettle": "boil water", "a spoon": "eat soup",
    "a toothbrush": "clean your teeth", "a comb": "tidy your hair", "a pillow": "rest your head",
    "a blanket": "keep warm", "a map": "find the way", "a compass": "find north",
    "a telescope": "look at the stars", "a microscope": "see tiny things", "a camera": "take pictures",
    "a phone": "call people", "a bucket": "carry water", "a rope": "tie things together",
    "a stamp": "post a letter",
    "a purse": "hold money", "a helmet": "protect your head", "an anchor": "hold a ship in place",
    "a shovel": "dig a hole", "a ladder": "climb to high places", "a bandage": "cover a wound",
    "a calendar": "look up the date",
}  # fmt: skip

MATERIALS = {
    "a window": "glass", "bread": "flour", "paper": "wood", "a tyre": "rubber", "a coin": "metal",
    "a brick": "clay", "a candle": "wax", "cheese": "milk", "butter": "cream", "wine": "grapes",
    "a sweater": "wool", "a shirt": "cotton", "a shoe": "leather", "a book": "paper", "a nail": "iron",
    "a snowman": "snow", "a chain": "steel", "chocolate": "cocoa", "an omelette": "eggs", "jam": "fruit",
    "popcorn": "maize", "sushi": "rice", "a wedding ring": "gold", "a castle": "stone",
    "a bird's nest": "twigs",
    "an igloo": "ice", "a mirror": "glass", "a pencil": "wood", "juice": "fruit",
}  # fmt: skip

WORKERS = {
    "bakes bread": "a baker", "puts out fires": "a firefighter", "treats sick people": "a doctor",
    "treats sick animals": "a vet", "flies a plane": "a pilot", "teaches children": "a teacher",
    "grows crops": "a farmer", "cuts hair": "a hairdresser", "catches fish": "a fisherman",
    "delivers letters": "a postman", "repairs cars": "a mechanic", "repairs water pipes": "a plumber",
    "builds houses": "a builder", "makes clothes": "a tailor", "paints pictures": "a painter",
    "writes books": "an author", "cooks meals in a restaurant": "a cook", "sells meat": "a butcher",
    "sells flowers": "a florist", "lends books": "a librarian", "drives a bus": "a bus driver",
    "looks after teeth": "a dentist", "makes furniture": "a carpenter", "digs coal": "a miner",
    "travels into space": "an astronaut", "decides in court": "a judge", "leads an orchestra": "a conductor",
    "sails a ship": "a sailor",
}  # fmt: skip

WORKPLACES = {
    "a teacher": "in a school", "a nurse": "in a hospital", "a farmer": "on a farm", "a cook": "in a kitchen",
    "a waiter": "in a restaurant", "a judge": "in a court", "a librarian": "in a library",
    "a miner": "in a mine",
    "an actor": "in a theatre", "a sailor": "on a ship", "a pilot": "in a plane", "a baker": "in a bakery",
    "a scientist": "in a laboratory", "a gardener": "in a garden", "a chemist": "in a pharmacy",
    "a priest": "in a church", "a mechanic": "in a garage", "a clerk": "in an office",
    "a clown": "in a circus",
    "a lifeguard": "at the pool",
}  # fmt: skip

PLACES = {
    "borrow books": "at a library", "buy bread": "at a bakery", "buy medicine": "at a pharmacy",
    "catch a train": "at a station", "catch a plane": "at an airport", "see a film": "at a cinema",
    "see a play": "at a theatre", "see wild animals": "at a zoo", "swim": "at a pool",
    "post a letter": "at a post office",
    "look at old paintings": "at a museum", "buy meat": "at a butcher's shop", "eat out": "at a restaurant",
    "sleep on a journey": "at a hotel", "take out money": "at a bank", "fill up a car": "at a petrol station",
    "buy fresh vegetables": "at a market", "play football": "at a stadium", "see a doctor": "at a hospital",
    "dance at night": "at a club",
}  # fmt: skip

KINDS = {
    "a rose": "a flower", "a tulip": "a flower", "a daisy": "a flower", "an oak": "a tree",
    "a pine": "a tree",
    "a birch": "a tree", "an apple": "a fruit", "a pear": "a fruit", "a cherry": "a fruit",
    "a carrot": "a vegetable", "a potato": "a vegetable", "a cabbage": "a vegetable", "a dog": "a mammal",
    "a whale": "a mammal", "a bat": "a mammal", "an eagle": "a bird", "a penguin": "a bird",
    "a parrot": "a bird",
    "a shark": "a fish", "a salmon": "a fish", "a trout": "a fish", "an ant": "an insect",
    "a bee": "an insect",
    "a butterfly": "an insect", "a snake": "a reptile", "a lizard": "a reptile", "a violin": "an instrument",
    "a piano": "an instrument", "a flute": "an instrument", "a hammer": "a tool", "a saw": "a tool",
    "a chair": "a piece of furniture", "a table": "a piece of furniture", "chess": "a game",
    "tennis": "a sport",
    "football": "a sport", "gold": "a metal", "iron": "a metal", "Mars": "a planet", "Venus": "a planet",
}  # fmt: skip

FOLLOWERS = {
    "Monday": "Tuesday", "Tuesday": "Wednesday", "Wednesday": "Thursday", "Thursday": "Friday",
    "Friday": "Saturday", "Saturday": "Sunday", "Sunday": "Monday", "January": "February",
    "February": "March",
    "March": "April", "April": "May", "May": "June", "June": "July", "July": "August", "August": "September",
    "September": "October", "October": "November", "November": "December", "December": "January",
    "spring": "summer", "summer": "autumn", "autumn": "winter", "winter": "spring",
}  # fmt: skip

COUNTS = {
    "legs|a spider": "eight", "legs|an insect": "six", "legs|a dog": "four", "legs|a bird": "two",
    "legs|a table": "four", "arms|an octopus": "eight", "arms|a starfish": "five", "fingers|a hand": "five",
    "toes|a foot": "five", "days|a week": "seven", "months|a year": "twelve", "hours|a day": "twenty-four",
    "minutes|an hour": "sixty", "seconds|a minute": "sixty", "years|a century": "one hundred",
    "years|a decade": "ten", "sides|a triangle": "three", "sides|a square": "four", "sides|a hexagon": "six",
    "sides|a pentagon": "five", "faces|a cube": "six", "wheels|a bicycle": "two", "wheels|a car": "four",
    "wheels|a tricycle": "three", "strings|a violin": "four", "strings|a guitar": "six",
    "colours|a rainbow": "seven", "seasons|a year": "four", "wings|a bird": "two",
    "players|a football team": "eleven",
}  # fmt: skip

SENSES = {
    "see": "your eyes", "hear": "your ears", "smell": "your nose", "taste": "your tongue",
    "bite": "your teeth",
    "walk": "your legs", "think": "your brain", "breathe": "your lungs", "grasp things": "your hands",
    "speak": "your mouth", "kick a ball": "your foot", "point at things": "your finger",
}  # fmt: skip

DIETS = {
    "a cow": "grass", "a rabbit": "carrots", "a panda": "bamboo", "a lion": "meat", "a monkey": "bananas",
    "a horse": "hay", "a bird": "seeds", "a cat": "mice", "a koala": "leaves", "a squirrel": "nuts",
    "a frog": "flies", "a mouse": "cheese", "a bear": "honey", "an anteater": "ants", "a seal": "fish",
    "a hen": "corn",
}  # fmt: skip

SOURCES = {
    "milk": "cows", "honey": "bees", "eggs": "hens", "wool": "sheep", "silk": "silkworms",
    "apples": "apple trees",
    "acorns": "oaks", "pearls": "oysters", "rain": "clouds", "grapes": "vines", "heat and light": "the sun",
    "electricity": "power stations",
}  # fmt: skip

OUTCOMES = {
    "you heat ice": "it melts", "you cool water below zero": "it freezes",
    "you boil water": "it turns into steam",
    "you drop a glass": "it breaks", "you put wood in a fire": "it burns",
    "you do not water a plant": "it dries out",
    "you plant a seed": "it grows", "you put sugar in tea": "it dissolves",
    "you leave iron in the rain": "it rusts",
    "you throw a stone into a lake": "it sinks", "you leave milk in the sun": "it turns sour",
    "you prick a balloon": "it bursts", "you bake dough": "it becomes bread",
    "you let go of a ball": "it falls",
    "you stretch a rubber band": "it gets longer", "you put a cork in water": "it floats",
}  # fmt: skip

CAPITALS = {
    "France": "Paris", "Germany": "Berlin", "Italy": "Rome", "Spain": "Madrid", "Portugal": "Lisbon",
    "England": "London", "Ireland": "Dublin", "Austria": "Vienna", "Poland": "Warsaw", "Greece": "Athens",
    "Norway": "Oslo", "Sweden": "Stockholm", "Denmark": "Copenhagen", "Finland": "Helsinki",
    "Russia": "Moscow",
    "Egypt": "Cairo", "Japan": "Tokyo", "China": "Beijing", "Canada": "Ottawa", "Cuba": "Havana",
    "Kenya": "Nairobi",
    "Hungary": "Budapest", "Belgium": "Brussels", "Peru": "Lima",
}  # fmt: skip
