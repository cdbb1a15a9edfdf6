"""Word lists and fact tables the generators draw from; written for this project.

Contract: immutable data only. Not covered: any claim to be complete; the tables are small so
that a model of a few million parameters can learn them.
"""

from __future__ import annotations

from typing import Final

HER_NAMES: Final = (
    "Mira", "Anna", "Lena", "Nora", "Ella", "Ruth", "Clara", "Ivy", "Rosa", "Tilda", "Maya",
    "Greta", "Alma", "Zara", "Wanda", "Hanna",
)  # fmt: skip
HIS_NAMES: Final = (
    "Tom", "Ben", "Leo", "Finn", "Oskar", "Milo", "Hugo", "Sam", "Otto", "Karl", "Felix",
    "Jonas", "Rudi", "Paul", "Emil", "Ned",
)  # fmt: skip
NAME_HEADS: Final = (
    "Al", "Bar", "Cor", "Dan", "El", "Fal", "Gar", "Hel", "Is", "Jor", "Kel", "Lor", "Mar", "Nil",
    "Or", "Pel", "Ran", "Sel", "Tal", "Ul", "Van", "Wil", "Yor", "Zel",
)  # fmt: skip
NAME_MIDDLES: Final = ("a", "e", "i", "o", "an", "er", "il", "on", "ar", "en")
NAME_TAILS: Final = ("na", "ra", "ta", "la", "vin", "mir", "dor", "lin", "sa", "ric", "beth", "mo")
CITIES: Final = (
    "Paris", "Rome", "Berlin", "Madrid", "London", "Oslo", "Vienna", "Athens", "Lisbon", "Cairo",
    "Tokyo", "Dublin", "Warsaw", "Prague", "Helsinki", "Lima",
)  # fmt: skip
WORDS: Final = (
    "apple", "arrow", "bread", "boat", "brush", "bucket", "button", "candle", "castle", "chair",
    "circle", "cloud", "corner", "desk", "door", "drum", "egg", "engine", "feather", "field",
    "flag", "garden", "glass", "hammer", "hat", "hill", "honey", "house", "ice", "island", "jacket",
    "jar", "juice", "kite", "ladder", "lamp", "leaf", "lemon", "letter", "market", "mirror", "moon",
    "mountain", "music", "needle", "night", "ocean", "orange", "paper", "pencil", "pillow", "pond",
    "queen", "rain", "ribbon", "river", "road", "rock", "sand", "school", "ship", "shoe", "silver",
    "spoon", "star", "stone", "sugar", "summer", "table", "tiger", "train", "tree", "uncle",
    "valley", "village", "violin", "water", "wheel", "window", "winter", "wool", "yard", "zebra",
)  # fmt: skip
COLOURS: Final = ("red", "blue", "green", "yellow", "white", "black", "brown", "purple")
THINGS: Final = ("kite", "ball", "hat", "bag", "cup", "boat", "coat", "book", "lamp", "box")
ANIMALS: Final = (
    "fox", "owl", "bear", "rabbit", "mouse", "cat", "dog", "duck", "frog", "horse", "hedgehog",
    "squirrel", "turtle", "wolf", "robin", "goat", "lion", "otter", "bee", "snail",
)  # fmt: skip
TRAITS: Final = (
    ("brave", "being brave means trying even when you are afraid"),
    ("kind", "a kind heart makes every day warmer"),
    ("clever", "a good idea is stronger than a loud voice"),
    ("little", "even the smallest friend can do great things"),
    ("shy", "the right friends give you time"),
    ("curious", "a good question opens many doors"),
    ("lonely", "a friend may be closer than you think"),
    ("lazy", "work done today makes a happy tomorrow"),
    ("old", "it is never too late to learn something new"),
    ("funny", "laughter can mend a bad day"),
    ("hungry", "food tastes best when it is shared"),
    ("sleepy", "a good rest gives you new strength"),
)
PLACES: Final = (
    "in a quiet forest", "near a wide river", "on a green hill", "by the sea", "in a small village",
    "under an old oak tree", "at the edge of a meadow", "beside a blue lake",
)  # fmt: skip
CAPITALS: Final = (
    ("France", "Paris"), ("Italy", "Rome"), ("Germany", "Berlin"), ("Spain", "Madrid"),
    ("England", "London"), ("Norway", "Oslo"), ("Austria", "Vienna"), ("Greece", "Athens"),
    ("Portugal", "Lisbon"), ("Egypt", "Cairo"), ("Japan", "Tokyo"), ("Ireland", "Dublin"),
    ("Poland", "Warsaw"), ("Finland", "Helsinki"), ("Peru", "Lima"), ("Sweden", "Stockholm"),
)  # fmt: skip
COLOUR_OF: Final = (
    ("grass", "green"), ("snow", "white"), ("the sky", "blue"), ("a banana", "yellow"),
    ("coal", "black"), ("milk", "white"), ("a lemon", "yellow"), ("a tomato", "red"),
    ("chocolate", "brown"), ("a raven", "black"), ("the sea", "blue"), ("a plum", "purple"),
)  # fmt: skip
SOUND_OF: Final = (
    ("dog", "barks"), ("cat", "meows"), ("cow", "moos"), ("duck", "quacks"), ("lion", "roars"),
    ("sheep", "bleats"), ("horse", "neighs"), ("owl", "hoots"), ("frog", "croaks"),
    ("bee", "buzzes"), ("pig", "oinks"), ("snake", "hisses"), ("wolf", "howls"),
)  # fmt: skip
OPPOSITES: Final = (
    ("hot", "cold"), ("big", "small"), ("day", "night"), ("fast", "slow"), ("happy", "sad"),
    ("up", "down"), ("old", "young"), ("wet", "dry"), ("open", "closed"), ("light", "dark"),
    ("full", "empty"), ("early", "late"), ("hard", "soft"), ("loud", "quiet"),
)  # fmt: skip
DAYS: Final = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
DEFINITIONS: Final = (
    ("a watt", "A watt is a unit of power. One watt is one joule per second."),
    ("a joule", "A joule is a unit of energy. One joule is one watt for one second."),
    ("energy", "Energy is what is needed to do work, such as moving or heating something."),
    ("a token", "A token is a small piece of text that a language model reads or writes."),
    ("a language model", "A language model is a program that predicts the next piece of text."),
    ("a computer", "A computer is a machine that follows instructions to work with data."),
    ("a triangle", "A triangle is a shape with three sides."),
    ("a square", "A square is a shape with four equal sides."),
    ("a week", "A week is a period of seven days."),
    ("a river", "A river is a long stream of water that flows to the sea."),
    ("an island", "An island is land with water on all sides."),
    ("a forest", "A forest is a large area with many trees."),
    ("the sun", "The sun is the star that gives the Earth light and warmth."),
    ("the moon", "The moon is a ball of rock that moves around the Earth."),
    ("rain", "Rain is water that falls from the clouds."),
    ("a bicycle", "A bicycle is a vehicle with two wheels that you move with your feet."),
    ("a teacher", "A teacher is a person who helps others to learn."),
    ("a baker", "A baker is a person who makes bread."),
)
GOOD_WORDS: Final = (
    "wonderful", "great", "excellent", "lovely", "amazing", "perfect", "delicious", "brilliant",
    "fantastic", "charming",
)  # fmt: skip
BAD_WORDS: Final = (
    "terrible", "awful", "boring", "horrible", "bad", "broken", "disgusting", "useless", "dreadful",
    "disappointing",
)  # fmt: skip
REVIEWED: Final = (
    "film", "book", "meal", "hotel", "concert", "game", "phone", "soup", "trip", "song", "party",
    "lesson",
)  # fmt: skip
TOPICS: Final = (
    ("sport", ("won the match", "scored a goal", "ran a long race", "trained with the team")),
    ("food", ("baked a cake", "cooked a warm soup", "ate fresh bread", "made a salad")),
    ("music", ("played the piano", "sang a song", "bought a new guitar", "went to a concert")),
    ("travel", ("took a train to {city}", "flew to {city}", "packed a bag for {city}",
                "booked a hotel in {city}")),
    ("weather", ("got wet in the rain", "walked through the snow", "hid from the storm",
                 "waited for the sun")),
)  # fmt: skip
SYSTEM_PROMPTS: Final = (
    "You are a helpful assistant.", "You are greenllm's bundled model.", "Be brief.",
    "You are a friendly assistant. Answer in simple words.", "Answer the question.",
)  # fmt: skip
