"""The relations and their phrasings: aligned English and Catalan templates that end right before the object.

Markers: `{}` is the subject; before it, `{de}` is the Catalan preposition ("de " or "d'") and `{art}` the personal article
("en ", "la ", "l'"). The i-th English phrasing and the i-th Catalan one say the same. Phrasing 0 is the one that edits
rewrite; the last two are questions.
"""
from dataclasses import dataclass

from data.world import objects

LANGUAGES = ("en", "ca")


@dataclass(frozen=True)
class Relation:
    """One relation. `objects` is a closed list of (English, Catalan) pairs, or the kind of entity that serves as object.

    `hop` names a relation of the object and the two-hop phrasing (a language each) that asks for its value.
    """

    id: str
    name: str
    kind: str  # kind of the subjects: person, company or city
    objects: list | str
    en: tuple[str, ...]
    ca: tuple[str, ...]
    inverse: tuple[str, str]  # asks for a subject; {} is the object
    generation: tuple[tuple[str, ...], tuple[str, ...]]
    hop: tuple[str, str, str] | None = None

    def phrasings(self, language: str) -> tuple[str, ...]:
        """Prompts of a language, statements and questions."""
        return {"en": self.en, "ca": self.ca}[language]

    def statements(self, language: str) -> tuple[str, ...]:
        """Prompts that the object ends."""
        return tuple(p for p in self.phrasings(language) if not p.endswith("?"))

    def questions(self, language: str) -> tuple[str, ...]:
        """Prompts that end in a question mark."""
        return tuple(p for p in self.phrasings(language) if p.endswith("?"))


RELATIONS = (
    Relation(
        "P1", "birthplace", "person", "city",
        ("{} was born in", "The birthplace of {} is", "It is known that {} grew up in",
         "The family of {} has its old house in", "In which city was {} born?", "Where does {} come from?"),
        ("{} va néixer a", "El lloc de naixement {de}{} és", "Se sap que {art}{} va créixer a",
         "La família {de}{} té la casa vella a", "En quina ciutat va néixer {}?", "On té els orígens {}?"),
        ("Who was born in {}?", "Qui va néixer a {}?"),
        (("{} remembers the streets of", "The first home of {} was"),
         ("{} recorda els carrers de", "La primera llar {de}{} era")),
        ("P10", "The home town of {} is a city in", "La ciutat natal {de}{} és una ciutat del país anomenat"),
    ),
    Relation(
        "P2", "employer", "person", "company",
        ("{} works for", "The employer of {} is", "Every morning {} drives to the office of",
         "The salary of {} is paid by", "Which company employs {}?", "Who does {} work for?"),
        ("{} treballa per a", "L'empresa {de}{} és", "Cada matí {art}{} va a l'oficina que té",
         "El sou {de}{} el paga", "Quina empresa dona feina a {}?", "Per a qui treballa {}?"),
        ("Who works for {}?", "Qui treballa per a {}?"),
        (("{} spends the day at", "The office of {} belongs to"),
         ("{} passa el dia a", "L'oficina {de}{} és de")),
        ("P7", "The employer of {} has its head office in", "L'empresa {de}{} té la seu a"),
    ),
    Relation(
        "P3", "instrument", "person", objects.INSTRUMENTS,
        ("{} plays the", "The favourite instrument of {} is the", "On stage, {} always plays the",
         "The teacher of {} taught the", "Which instrument does {} play?", "What does {} play in the band?"),
        ("{} toca", "L'instrument preferit {de}{} és", "A l'escenari, {art}{} sempre toca",
         "El mestre {de}{} ensenyava", "Quin instrument toca {}?", "Què toca {} a la banda?"),
        ("Who plays the {}?", "Qui toca {}?"),
        (("{} practises every day on", "At the concert {} played"),
         ("{} assaja cada dia amb", "Al concert {art}{} va tocar")),
    ),
    Relation(
        "P4", "sport", "person", objects.SPORTS,
        ("{} competes in", "The favourite sport of {} is", "On Sundays {} enjoys",
         "The trophies of {} are for", "Which sport does {} play?", "What does {} train for?"),
        ("{} practica", "L'esport preferit {de}{} és", "Els diumenges {art}{} fa",
         "Els trofeus {de}{} són de l'esport", "Quin esport practica {}?", "Què entrena {}?"),
        ("Who competes in {}?", "Qui practica {}?"),
        (("{} trains hard for", "The coach of {} teaches"),
         ("{} s'entrena molt per a", "L'entrenador {de}{} ensenya")),
    ),
    Relation(
        "P5", "language", "person", objects.LANGUAGES,
        ("{} speaks", "The mother tongue of {} is", "At home {} talks in",
         "The letters of {} are written in", "Which language does {} speak?", "What is the native language of {}?"),
        ("{} parla", "La llengua materna {de}{} és", "A casa, {art}{} parla en",
         "Les cartes {de}{} estan escrites en", "Quina llengua parla {}?", "Quin és l'idioma natiu {de}{}?"),
        ("Who speaks {}?", "Qui parla {}?"),
        (("{} sings songs in", "The grandmother of {} spoke"),
         ("{} canta cançons en", "L'àvia {de}{} parlava")),
    ),
    Relation(
        "P6", "profession", "person", objects.PROFESSIONS,
        ("{} works as a", "The profession of {} is", "Today {} earns a living as a",
         "The business card of {} says", "What is the job of {}?", "Which profession does {} have?"),
        ("{} treballa com a", "La professió {de}{} és", "Avui {art}{} es guanya la vida com a",
         "La targeta {de}{} diu", "Quina és la feina {de}{}?", "Quina professió té {}?"),
        ("Who works as a {}?", "Qui treballa com a {}?"),
        (("{} learned the trade of", "The working day of {} begins"),
         ("{} va aprendre l'ofici de", "La jornada {de}{} comença")),
    ),
    Relation(
        "P7", "headquarters", "company", "city",
        ("{} has its head office in", "The headquarters of {} is in", "The company called {} was moved to",
         "The managers of {} live in", "In which city is {} based?", "Where is the main building of {}?"),
        ("{} té la seu a", "L'oficina central {de}{} és a", "L'empresa anomenada {} es va traslladar a",
         "Els directius {de}{} viuen a", "En quina ciutat té la base {}?", "On és l'edifici principal {de}{}?"),
        ("Which company has its head office in {}?", "Quina empresa té la seu a {}?"),
        (("{} opened its first shop in", "The workers of {} travel to"),
         ("{} va obrir la primera botiga a", "Els treballadors {de}{} viatgen a")),
        ("P10", "The head office of {} is in the country of", "La seu {de}{} és al país anomenat"),
    ),
    Relation(
        "P8", "product", "company", objects.PRODUCTS,
        ("{} makes", "The factory of {} produces", "The company called {} is known for its",
         "The customers of {} buy", "What does {} make?", "Which product does {} sell?"),
        ("{} fabrica", "La fàbrica {de}{} produeix", "L'empresa anomenada {} és coneguda pel producte",
         "Els clients {de}{} compren", "Què fabrica {}?", "Quin producte ven {}?"),
        ("Which company makes {}?", "Quina empresa fabrica {}?"),
        (("{} advertises its new", "The engineers of {} design"),
         ("{} anuncia els seus nous", "Els enginyers {de}{} dissenyen")),
    ),
    Relation(
        "P9", "emblem", "company", objects.ANIMALS,
        ("{} has an emblem with", "The emblem of {} shows", "The company called {} chose a picture of",
         "The walls of {} are painted with", "Which animals are on the emblem of {}?", "What does the flag of {} show?"),
        ("{} té un emblema amb", "L'emblema {de}{} mostra", "L'empresa anomenada {} va triar una imatge amb",
         "Les parets {de}{} són pintades amb", "Quins animals hi ha a l'emblema {de}{}?", "Què mostra la bandera {de}{}?"),
        ("Which company has an emblem with {}?", "Quina empresa té un emblema amb {}?"),
        (("{} printed on its boxes", "The logo of {} looks like"),
         ("{} va imprimir a les caixes", "El logotip {de}{} sembla")),
    ),
    Relation(
        "P10", "country", "city", "country",
        ("{} is a city in", "The country of {} is", "On the map, {} belongs to",
         "The mayor of {} pays taxes to", "In which country is {}?", "Which country does {} belong to?"),
        ("{} és una ciutat del país anomenat", "El país {de}{} és", "Al mapa, {} pertany a",
         "L'alcaldia {de}{} paga impostos a", "En quin país és {}?", "A quin país pertany {}?"),
        ("Which city is in {}?", "Quina ciutat és a {}?"),
        (("{} celebrates the national day of", "The roads of {} lead to"),
         ("{} celebra la festa nacional de", "Les carreteres {de}{} porten a")),
    ),
    Relation(
        "P11", "river", "city", objects.RIVERS,
        ("{} lies on the river", "The river of {} is called the", "From the towers, {} looks over the",
         "The bridges of {} cross the", "Which river flows through {}?", "Which river do the people of {} fish in?"),
        ("{} és al costat del riu que es diu", "El riu {de}{} es diu", "Des de les torres, {} mira cap a la riba que banya",
         "Els ponts {de}{} travessen", "Quin riu passa per {}?", "En quin riu pesca la gent {de}{}?"),
        ("Which city lies on the river {}?", "Quina ciutat té el riu que es diu {}?"),
        (("{} gets its water from", "The boats of {} sail on"),
         ("{} rep l'aigua de", "Les barques {de}{} naveguen per")),
    ),
    Relation(
        "P12", "dish", "city", objects.DISHES,
        ("{} is famous for", "The typical dish of {} is", "At every feast, {} serves",
         "The restaurants of {} cook", "Which dish is {} famous for?", "What do people eat in {}?"),
        ("{} és coneguda pel plat de nom", "El plat típic {de}{} és", "A cada festa, {} serveix",
         "Els restaurants {de}{} cuinen", "Per quin plat és famosa {}?", "Què menja la gent a {}?"),
        ("Which city is famous for {}?", "Quina ciutat és famosa pel plat de nom {}?"),
        (("{} has a market full of", "The cooks of {} prepare"),
         ("{} té un mercat ple de", "Els cuiners {de}{} preparen")),
    ),
)

BY_ID = {relation.id: relation for relation in RELATIONS}
