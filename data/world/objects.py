"""Closed sets of objects: (English, Catalan) pairs. Cities and companies as objects come from the entities.

No object ends a Catalan phrase that would need "de" in front of it, and English professions all take "a", so that one
form of an object fits every phrasing of its relation. Instruments and rivers carry their Catalan article.
"""
from data.world.catalan import article


def _pairs(text: str) -> list[tuple[str, ...]]:
    """Entries "english | catalan", separated by semicolons."""
    return [tuple(part.strip() for part in entry.split("|")) for entry in text.split(";")]


def _with_article(text: str) -> list[tuple[str, str]]:
    """Entries "english | catalan | gender"; the Catalan form gets its article."""
    return [(en, article(ca, gender) + ca) for en, ca, gender in _pairs(text)]


INSTRUMENTS = _with_article("""
violin | violí | m; flute | flauta | f; harp | arpa | f; piano | piano | m; trumpet | trompeta | f; oboe | oboè | m;
guitar | guitarra | f; cello | violoncel | m; drum | tambor | m; organ | orgue | m; clarinet | clarinet | m;
accordion | acordió | m; mandolin | mandolina | f; bassoon | fagot | m; lute | llaüt | m; saxophone | saxòfon | m;
xylophone | xilòfon | m; harmonica | harmònica | f; zither | cítara | f; bagpipe | gaita | f
""")

SPORTS = _pairs("""
football | futbol; tennis | tennis; basketball | bàsquet; chess | escacs; swimming | natació; rugby | rugbi;
hockey | hoquei; volleyball | voleibol; cycling | ciclisme; rowing | rem; sailing | vela; fencing | esgrima;
golf | golf; boxing | boxa; archery | tir amb arc; judo | judo; skiing | esquí; climbing | escalada;
water polo | waterpolo; badminton | bàdminton
""")

LANGUAGES = _pairs("""
Valdic | vàldic; Orrish | orrès; Tamarian | tamarià; Nolese | nolès; Kessian | kessià; Brunic | brúnic; Elvish | èlfic;
Marran | marrà; Ostric | òstric; Sudarian | sudarià; Galdese | galdès; Pelasian | pelasià; Hurric | húrric;
Zentian | zentià; Low Dravic | baix dràvic; High Dravic | alt dràvic; Ivonese | ivonès; Cathric | càtric;
Jorvish | jorvès; Umbrian | umbrià
""")

PROFESSIONS = _pairs("""
journalist | periodista; dentist | dentista; florist | florista; taxi driver | taxista; poet | poeta;
novelist | novel·lista; guide | guia; singer | cantant; pianist | pianista; lifeguard | socorrista;
receptionist | recepcionista; chef | cap de cuina; psychiatrist | psiquiatre; train driver | maquinista;
bookkeeper | comptable; caretaker | conserge; translator | intèrpret; mountaineer | alpinista;
space traveller | astronauta; humorist | humorista
""")

PRODUCTS = _pairs("""
bicycles | bicicletes; watches | rellotges; shoes | sabates; furniture | mobles; lamps | llums; toys | joguines;
carpets | catifes; medicines | medicaments; cameras | càmeres; boats | vaixells; chocolate | xocolata;
perfume | perfums; umbrellas | paraigües; glass bottles | ampolles de vidre
""")

ANIMALS = _pairs("""
foxes | guineus; eagles | àguiles; wolves | llops; bears | ossos; owls | òlibes; dolphins | dofins; lions | lleons;
horses | cavalls; turtles | tortugues; bees | abelles; swans | cignes; hedgehogs | eriçons;
red squirrels | esquirols vermells; butterflies | papallones
""")

COUNTRIES = _pairs("""
Valdoria | Valdòria; Orrland | Orrlàndia; Tamaria | Tamària; Nolia | Nòlia; Kessia | Késsia; Brunmark | Brunmarca;
Elvania | Elvània; Marrakia | Marràquia; Ostria | Òstria; Sudaria | Sudària; Galdes | Galdes;
New Pelasia | Nova Pelàsia
""")

RIVERS = _with_article("""
Nol | Nol | m; Arvo | Arvo | m; Sorrel | Sorrel | m; Imber | Imber | m; Teme | Teme | f; Quill | Quill | m;
Ulda | Ulda | f; Varn | Varn | m; Essel | Essel | m; Drava | Drava | f; Oster | Oster | m; Lorn | Lorn | m
""")

DISHES = _pairs("""
lentils | llenties; mussels | musclos; pancakes | creps; roast duck | ànec rostit; onion soup | sopa de ceba;
fish stew | suquet; goat cheese | formatge de cabra; dumplings | mandonguilles; snails | cargols;
sausages | botifarres; mushroom rice | arròs amb bolets; apple pie | pastís de poma
""")
