"""Vocabulary of the simulation: the words for names and constants.

One example draws its names from one domain, so that texts about different things are also far apart for a
sentence embedder. All words are lower-case ASCII and short, because the tokenizer is small.
"""

from __future__ import annotations

from random import Random


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


DOMAINS: dict[str, tuple[str, ...]] = {
    name: _words(words)
    for name, words in {
        "shipping": "parcel freight crate pallet cargo courier customs dock carrier postage tariff bundle",
        "weather": "rain storm wind frost humidity forecast cloud snow breeze pressure gust thunder",
        "heating": "boiler radiator thermostat furnace valve heater stove chimney pump burner damper kettle",
        "bank": "loan deposit interest account cheque mortgage vault teller credit debit branch transfer",
        "school": "pupil exam grade lesson teacher homework tutor essay term desk quiz campus",
        "kitchen": "recipe oven flour spice dough sauce plate spoon dish menu broth pastry",
        "garden": "plant seed soil hedge lawn rose compost weed flower tulip shovel orchard",
        "farm": "tractor barn cattle harvest wheat sheep fence milk stable poultry silo plough",
        "hospital": "patient nurse ward dose pulse fever clinic surgeon bandage triage symptom vaccine",
        "railway": "train platform signal ticket wagon station track coach engine tunnel conductor rail",
        "airport": "flight runway gate baggage pilot cabin boarding passport hangar terminal luggage crew",
        "sea": "ship anchor harbour tide sail wave cargohold mast captain reef lighthouse ferry",
        "library": "book shelf reader author chapter volume catalogue page novel archive lender title",
        "music": "song chord melody tempo violin drum concert singer rhythm album piano choir",
        "sport": "match goal player referee league medal coachee stadium race sprint trophy team",
        "chess": "pawn knight bishop rook board opening gambit endgame castle king tourney clock",
        "hotel": "room guest booking suite lobby porter pillow reception towel breakfast minibar key",
        "office": "memo printer meeting invoice clerk folder stapler manager agenda desktop badge cubicle",
        "factory": "machine conveyor worker shift bolt gear assembly lathe foreman rivet welder press",
        "mine": "ore shaft coal drill miner gravel quarry lamp tunneler copper granite seam",
        "car": "wheel brake clutch fuel tyre mirror garage gearbox bumper driver mileage bonnet",
        "bicycle": "pedal saddle chain spoke helmet rider basket handlebar trail bell frame puncture",
        "network": "packet router latency socket server domain firewall switch port bandwidth proxy node",
        "camera": "lens shutter flash photo tripod zoom film exposure portrait focus album aperture",
        "theatre": "actor stage curtain scene script costume audience prompt drama matinee usher rehearsal",
        "museum": "exhibit statue gallery curator relic painting "
        "fossil sculpture vase visitor antique mosaic",
        "zoo": "lion tiger monkey keeper giraffe cage penguin zebra otter panda parrot camel",
        "forest": "tree leaf bark squirrel fern moss deer ranger timber acorn beetle owl",
        "space": "rocket orbit planet comet star crater probe galaxy lunar shuttle meteor antenna",
        "power": "voltage battery cable circuit turbine meter fuse grid generator socketry solar charge",
        "water": "river bridge dam reservoir pipe canal filter faucet leak sluice stream basin",
        "building": "brick cement roof ladder scaffold plaster window beam mortar crane paint tile",
        "clothes": "shirt button sleeve fabric zipper jacket glove scarf tailor pocket linen wool",
        "shop": "basket cashier coupon discount shelfage customer receipt barcode bargain till refund stock",
        "law": "court judge verdict lawyer trial jury witness statute appeal fine clause contract",
        "police": "officer patrol suspect siren warrant detective evidence prison alibi burglar arrest radio",
        "election": "vote ballot party candidate poll district mayor senate campaign turnout quota delegate",
        "church": "chapel sermon candle hymn steeple organist parish altar pilgrim monk abbey donation",
        "insurance": "policy claim premium damage broker payout "
        "accident liability insurer excess renewal risk",
        "tax": "income rebate levy bracket audit allowance salary revenue duty exemption payroll pension",
        "bakery": "loaf cake croissant muffin yeast bagel cookie icing oventray bun pie rye",
        "fishing": "trout salmon bait rod net hook boat angler lure pond carp reel",
        "coffee": "espresso bean roast mug barista cream filterage latte grinder aroma sugar brew",
        "game": "dice token level monster quest armour potion sword wizard dungeon score hero",
        "film": "movie director scenery trailer subtitle studio "
        "stunt camerawork cinema sequel reelage credits",
        "news": "headline editor column reporter press article interview printer edition story rumour paper",
        "lab": "sample reagent beaker microscope assay culture pipette isotope enzyme catalyst vial toxin",
        "moving": "box van lorry storage furniture sofa lift trolley cupboard wardrobe crateful lamp",
    }.items()
}
MEASURES = _words(
    "weight size amount level speed age price load depth height width length volume rate mass heat angle "
    "pace range span power force count points hours days minutes distance area cost value units rank dose "
    "budget margin limit fee wage profit gap delay step drift"
)
LIST_WORDS = _words(
    "values items readings numbers entries samples marks records scores counts amounts sizes rows data sums "
    "levels costs prices weights ages times batches orders moves changes figures totals hits results parts"
)
TEXT_WORDS = _words(
    "name title label text word line code tag key phrase slug note field user path caption brand city topic "
    "header alias street colour kind term reply subject nick mark id"
)
LABELS = _words(
    "low mid high red green blue small large tiny huge free full none basic plus gold silver bronze "
    "slow fast "
    "cold warm hot dry wet safe risky open closed early late young old light heavy short long cheap dear "
    "good fair poor best worst calm loud quiet pass fail wait stop go north south east west new used first "
    "start total add subtract keep other after modulo item second third last minor major weak "
    "strong bright dark soft hard thin thick empty ready busy idle"
)
VERBS = _words(
    "get find make compute rate check pick plan set choose count estimate measure rank sort tidy format "
    "clean adjust limit grade judge price sum list scan trim fix track map filter score review"
)
ADJECTIVES = _words(
    "daily weekly monthly yearly total net gross final average local national internal public private urgent "
    "regular standard special seasonal annual spare extra main central upper lower inner outer double single "
    "broken modern ancient wooden metal digital manual official secret summer winter morning evening"
)
FILL_VERBS = _words("add put fill store gain push place load grow insert")
DRAIN_VERBS = _words("take draw use spend pop fetch remove unload drain pull")
READ_VERBS = _words("read show look peek view report tell inspect")
RESET_VERBS = _words("reset clear restart wipe renew")
ERRORS = _words("ValueError KeyError IndexError TypeError LookupError RuntimeError OverflowError")
PUNCTUATION = ("-", "_", "/", ":", ".", ",", "+", "#", "*", "=", "!", "|", "~", "@", "&", "%")


def invent_word(rng: Random) -> str:
    """Invent a pronounceable word, so that the model learns to copy rather than to recall."""
    pairs = [rng.choice("bcdfghklmnprstvz") + rng.choice("aeiou") for _ in range(rng.randint(2, 3))]
    return "".join(pairs) + rng.choice(("", "n", "r", "s", "t"))


class Vocabulary:
    """Draws the words of one example, no name twice."""

    def __init__(self, rng: Random) -> None:
        self.rng = rng
        self.domain = rng.choice(sorted(DOMAINS))
        self._nouns = list(DOMAINS[self.domain])
        rng.shuffle(self._nouns)
        self._used_names: set[str] = set()

    def noun(self) -> str:
        """Draw a noun of the domain, each at most once, or sometimes an invented word."""
        if not self._nouns or self.rng.random() < 0.08:
            return invent_word(self.rng)
        return self._nouns.pop()

    def function_name(self) -> str:
        """Draw ``verb_noun``, ``noun_noun``, ``adjective_noun`` or ``verb_noun_noun``."""
        noun, roll = self.noun(), self.rng.random()
        if roll < 0.4:
            return self._unique(f"{self.rng.choice(VERBS)}_{noun}")
        if roll < 0.7:
            return self._unique(f"{noun}_{self.noun()}")
        if roll < 0.85:
            return self._unique(f"{self.rng.choice(ADJECTIVES)}_{noun}")
        return self._unique(f"{self.rng.choice(VERBS)}_{noun}_{self.noun()}")

    def class_name(self) -> str:
        """Draw two nouns, or an adjective and a noun, as ``CamelCase``."""
        first = self.rng.choice(ADJECTIVES) if self.rng.random() < 0.3 else self.noun()
        return first.capitalize() + self.noun().capitalize()

    def method_name(self, verbs: tuple[str, ...]) -> str:
        """Draw one of the verbs as an unused name."""
        return self._unique(self.rng.choice(verbs))

    def purpose(self) -> str | None:
        """Draw two or three words for what a function returns, or none."""
        if self.rng.random() < 0.25:
            return None
        words = [self.noun(), self.rng.choice((self.noun(), self.rng.choice(MEASURES)))]
        if self.rng.random() < 0.5:
            words.insert(0, self.rng.choice(ADJECTIVES))
        return " ".join(words)

    def number_name(self) -> str:
        """Draw a parameter for a number."""
        roll = self.rng.random()
        if roll < 0.55:
            return self._unique(self.rng.choice(MEASURES))
        return self._unique(self.noun() if roll < 0.85 else f"{self.noun()}_{self.rng.choice(MEASURES)}")

    def list_name(self) -> str:
        """Draw a parameter for a list."""
        if self.rng.random() < 0.5:
            return self._unique(self.rng.choice(LIST_WORDS))
        return self._unique(f"{self.noun()}s")

    def text_name(self) -> str:
        """Draw a parameter for a text."""
        return self._unique(self.rng.choice(TEXT_WORDS) if self.rng.random() < 0.6 else self.noun())

    def label(self) -> str:
        """Draw a text constant."""
        roll = self.rng.random()
        return (
            self.rng.choice(LABELS)
            if roll < 0.75
            else (self.noun() if self._nouns else invent_word(self.rng))
        )

    def _unique(self, name: str) -> str:
        while name in self._used_names:
            name = f"{name}_{invent_word(self.rng)}"
        self._used_names.add(name)
        return name
