"""Other names of algorithms, from the published configurations."""

ALIASES = {"gtn": "mend", "ke": "efk", "serac": "rep"}
