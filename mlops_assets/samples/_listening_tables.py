"""What the world of listeners is made of: its genres, words and markets, and how frequent each is.

What belongs here: fixed tables. What does not: anything drawn at random from them.
"""

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Objects = NDArray[np.object_]


def _words(text: str) -> Objects:
    return np.array(text.split(), dtype=object)


MARKETS = ("US", "BR", "GB", "DE", "FR", "SE", "NO", "DK")
MARKET_SHARES = np.array([0.28, 0.18, 0.14, 0.13, 0.10, 0.08, 0.05, 0.04])
UTC_HOURS = np.array([0, -6, -3, 0, 1, 1, 1, 1, 1])  # by market code; code 0 is "unknown"
_REGIONS = ("US|GB", "BR", "US|GB", "DE|FR|GB", "DE|FR", "SE|NO|DK", "SE|NO|DK", "SE|NO|DK")
MARKET_SETS = ("", *MARKETS, *_REGIONS)  # what a track's licence code stands for; code 0 is "everywhere"

# A row a genre: its name, its four sub-genres, and eight words of which sub-genre i owns the 2i-th and the next.
GENRES = _words(
    """
    rock indie_rock garage_rock post_punk arena_rock
      jangly lofi fuzz raw angular gloomy anthem riff
    pop dance_pop synth_pop bedroom_pop ballad_pop
      chart catchy synth retro hushed bedroom ballad diva
    hiphop trap boom_bap drill cloud_rap
      808 hihat sampling vinyl sliding street hazy autotune
    electronic house techno drum_and_bass synthwave
      club four_four warehouse modular breakbeat subbass neon arp
    rnb neo_soul alt_rnb funk quiet_storm
      soulful rhodes moody falsetto slapbass horns slowjam silky
    folk indie_folk americana nordic_folk singer_songwriter
      banjo harmony pedal_steel road fiddle fjord confession nylon
    metal black_metal doom_metal metalcore power_metal
      tremolo frost sludge slow breakdown scream epic twin_guitar
    jazz bebop cool_jazz fusion_jazz vocal_jazz
      sax swing brushed trumpet odd_meter electric_piano standards crooner
    classical baroque romantic minimalism film_score
      harpsichord fugue piano nocturne repetition marimba strings cinematic
    latin reggaeton bossa_nova salsa sertanejo
      dembow perreo guitar_nylon samba clave brass accordion viola
    country outlaw_country country_pop bluegrass honky_tonk
      twang truck radio smalltown mandolin pickin barroom shuffle
    ambient drone dark_ambient sleep_music space_ambient
      sustained texture ominous cavern calm rain cosmic pads
    """
).reshape(-1, 13)
GENRE_SHARES = np.array([0.15, 0.19, 0.17, 0.11, 0.08, 0.06, 0.05, 0.04, 0.03, 0.06, 0.04, 0.02])
SUB_SHARES = np.array([0.36, 0.27, 0.21, 0.16])
EXPLICIT = np.array([0.08, 0.08, 0.42, 0.05, 0.12, 0.03, 0.16, 0.01, 0.0, 0.12, 0.05, 0.0])
WORDLESS = np.array([0.05, 0.03, 0.02, 0.35, 0.05, 0.05, 0.06, 0.5, 0.8, 0.05, 0.03, 0.9])
MOODS = _words(
    """
    chill dark happy melancholic energetic dreamy aggressive romantic nostalgic uplifting party focus
    sleepy driving intimate rebellious warm cold summer winter night morning workout rainy
    """
)
DECADES = np.array([f"{year}s" for year in range(1960, 2030, 10)], dtype=object)
# A row a topic.
TOPICS = _words(
    """
    road highway engine drive mile wheel dust gas map horizon truck bridge
    heart kiss lips darling forever promise touch hold sweet honey arms tender
    money city hustle chain diamond crown block street game boss gold rich
    dance floor lights beat dj tonight bass club hands body move sweat
    tears goodbye leave broken lonely empty ghost memory regret fade cold miss
    river mountain forest snow fire wolf stone pine field harvest valley lake
    death blood throne steel sword battle demon grave thunder storm iron hell
    moon midnight smoke whiskey blue bar piano rain shadow neon cigarette velvet
    angel heaven prayer soul grace glory light silence eternal holy choir bell
    sol playa fuego corazon noche baila amor ritmo cielo luna vida fiesta
    home mama porch sunday church beer boots creek daddy town fence cotton
    star space orbit void dream machine signal drift ocean gravity wave static
    """
).reshape(-1, 12)
COMMON_WORDS = _words(
    """
    you me we know time never always away come back down feel say want need see love day night gone tell
    one
    """
)
ADJECTIVES = _words(
    """
    Silver Broken Golden Little Last Endless Paper Electric Hollow Crimson Quiet Distant Wild Sacred
    Plastic Velvet Burning Secret Northern Lost Second Lucid Bitter Gentle Heavy Marble Restless Empty
    Holy Final
    """
)

GENRE_COUNT, SUB_COUNT = len(GENRES), 4 * len(GENRES)
