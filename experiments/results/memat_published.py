"""MEMAT's published values (Tamayo et al. 2024), percent, on Aguila-7b and multi-CounterFact in English and Catalan.

Read from the coordinates of the vector figures that the authors' repository ships, good to about 0.01. A pair is the first letter
of the language that MEMIT edits in, and that of the language that heads are chosen and corrections trained in.
"""

from __future__ import annotations

COLUMNS = ("ES", "EA", "EM", "PS", "PA", "PM", "NS", "NA", "NM", "Score")
"""Efficacy, paraphrase, neighbourhood; success, accuracy, magnitude; and the harmonic mean of the successes."""

_K_SWEEP = """
english EE 0 98.39 78.84 61.51 92.64 51.97 38.46 71.80 9.56 6.79 86.00
english CE 0 88.76 45.16 31.88 84.04 33.39 22.15 71.77 8.83 6.55 80.86
english CC 8 90.17 51.00 38.66 86.15 39.10 27.62 72.97 11.40 8.35 82.41
english CC 16 90.53 54.40 42.19 86.80 42.30 31.06 73.50 13.14 9.43 82.94
english CC 32 90.27 51.63 39.03 86.17 39.27 27.84 72.70 11.52 8.32 82.33
english CC 48 90.10 49.90 37.43 85.95 38.42 26.70 72.55 10.91 7.99 82.15
english CE 8 90.47 53.73 40.44 86.85 42.28 29.77 73.04 12.74 8.99 82.74
english CE 16 90.83 57.70 44.84 87.63 46.73 34.00 73.76 14.70 10.30 83.38
english CE 32 90.70 57.63 43.79 86.98 45.40 32.22 73.43 14.39 9.67 83.01
english CE 48 90.53 51.90 39.08 86.27 40.43 27.91 72.63 12.19 8.32 82.40
english EC 8 98.63 81.97 66.81 94.08 58.32 45.33 72.61 12.30 8.63 86.86
english EC 16 98.63 83.27 69.20 94.20 62.28 48.73 72.96 14.67 9.63 87.06
english EC 32 98.73 83.23 67.58 94.40 60.70 46.49 72.41 13.66 8.81 86.88
english EC 48 98.80 82.63 67.12 94.20 58.32 44.78 72.35 12.32 8.17 86.81
english EE 8 98.63 83.53 70.33 94.40 60.62 48.74 73.22 13.40 9.50 87.24
english EE 16 98.80 85.83 73.72 94.65 63.58 51.98 73.66 15.08 10.45 87.56
english EE 32 99.00 84.83 71.99 94.60 62.23 49.96 72.79 13.82 9.46 87.18
english EE 48 98.67 81.33 66.55 93.98 55.88 43.55 72.12 11.44 7.92 86.60
catalan EC 0 88.86 57.74 40.87 83.67 46.06 31.75 71.15 12.27 7.71 80.52
catalan CC 0 97.39 82.57 66.95 88.31 55.74 40.37 70.48 12.67 7.34 83.84
catalan CC 8 97.77 84.23 72.37 89.75 60.78 47.65 72.13 14.89 8.99 85.14
catalan CC 16 97.77 85.20 74.81 90.58 63.18 51.40 72.57 16.76 10.10 85.60
catalan CC 32 97.77 84.30 72.83 89.58 60.85 47.91 71.83 15.28 9.11 84.95
catalan CC 48 97.83 84.13 71.39 89.37 60.05 46.61 71.77 14.88 8.80 84.88
catalan CE 8 97.67 83.53 71.00 89.65 61.82 48.17 72.28 15.77 9.26 85.16
catalan CE 16 97.63 84.43 73.40 90.42 64.92 51.54 72.73 17.62 10.53 85.59
catalan CE 32 97.57 84.57 73.26 89.78 63.37 50.34 72.43 16.65 9.73 85.24
catalan CE 48 97.80 83.87 70.78 89.35 60.70 46.34 71.63 14.96 8.69 84.80
catalan EC 8 88.87 62.10 47.12 84.77 51.60 38.11 72.79 15.67 9.42 81.55
catalan EC 16 89.10 64.53 50.10 85.32 55.58 41.21 73.16 18.42 10.80 81.94
catalan EC 32 89.00 64.20 49.28 85.10 54.83 39.75 72.77 17.63 10.34 81.68
catalan EC 48 88.93 62.93 47.57 85.08 52.62 37.93 72.62 15.74 9.36 81.59
catalan EE 8 88.67 62.13 47.85 85.37 51.40 39.02 73.03 15.49 9.79 81.78
catalan EE 16 88.80 63.30 50.46 85.50 53.57 41.49 73.06 17.02 10.64 81.87
catalan EE 32 89.07 62.90 49.14 85.32 52.55 40.15 72.54 16.19 9.97 81.67
catalan EE 48 88.77 60.03 44.81 84.45 48.77 35.31 71.76 13.90 8.47 80.99
"""  # measured in, pair, heads (0: MEMIT alone, 7 chunks of 1,000 facts; else 3 chunks), values

_ITI = """
1 1 88.20 44.10 31.79 83.95 33.85 22.17 71.59 8.29 6.24
1 2 88.20 44.00 31.71 83.85 33.65 22.09 71.60 8.28 6.22
1 5 88.10 43.80 31.32 83.90 33.55 21.78 71.52 8.29 6.11
1 10 88.10 43.70 31.27 83.90 33.35 21.72 71.54 8.28 6.11
5 1 88.00 44.20 31.81 83.85 33.90 22.26 71.63 8.37 6.26
5 2 87.90 43.60 31.38 83.65 33.25 21.85 71.50 8.25 6.14
5 5 87.90 43.50 29.18 83.05 32.35 20.17 71.09 7.93 5.62
5 10 88.00 42.70 28.87 82.85 31.55 19.81 70.85 7.81 5.61
10 1 87.90 44.00 31.81 84.10 34.00 22.35 71.57 8.35 6.27
10 2 87.80 43.60 30.83 83.55 32.80 21.43 71.44 8.03 6.02
10 5 87.00 42.50 26.07 82.20 30.70 17.93 70.24 7.47 5.06
10 10 87.10 40.50 25.22 82.20 29.05 17.04 70.14 6.99 4.96
12 1 87.90 44.10 31.80 84.05 34.00 22.37 71.56 8.36 6.28
12 2 87.80 43.50 30.56 83.40 32.70 21.23 71.43 8.02 5.96
12 5 86.90 41.50 24.77 81.70 30.05 17.00 70.00 7.26 4.87
12 10 86.60 39.50 23.63 81.80 28.40 15.86 69.88 6.72 4.71
15 1 87.90 44.00 31.77 84.05 34.10 22.40 71.58 8.36 6.28
15 2 88.00 42.90 30.11 83.45 32.25 20.88 71.31 8.00 5.86
15 5 86.40 39.60 22.86 81.20 28.60 15.62 69.67 7.10 4.62
15 10 86.20 37.10 21.23 80.70 25.30 14.09 69.41 6.28 4.36
"""  # alpha, heads, values without the score; MEMIT in Catalan, heads and measures in English, 1,000 facts

_PORTABILITY = """
english CC 89.8 54.5 42.2 85.7 42.9 31.6 73.7 13.7 9.9
catalan CC 97.6 84.9 74.8 90.1 62.6 51.1 72.7 16.8 10.6
english EE 98.6 85.2 71.0 94.4 62.1 49.6 73.4 14.8 9.9
catalan EE 89.3 63.2 48.4 85.0 53.4 39.4 73.0 16.7 10.4
english CE 89.5 52.7 38.5 85.7 41.2 28.1 73.1 12.6 8.7
catalan CE 97.3 83.9 70.6 89.1 61.3 46.3 71.8 15.5 9.2
english EC 98.5 82.8 67.5 93.7 59.7 46.2 72.6 14.0 9.2
catalan EC 89.4 63.3 48.1 84.8 53.8 39.1 72.6 16.7 10.3
"""  # measured in, pair, values without the score: heads and corrections of the first 1,000 facts, applied to others

_BILINGUAL = """
english C+E 0 98.3 69.5 54.5 94.8 51.4 39.2 65.4 7.4 4.6
catalan C+E 0 97.1 75.5 59.7 91.3 57.2 43.9 65.1 9.3 4.5
english C+E 16 99.0 78.5 68.0 96.2 63.2 53.1 67.2 11.5 7.1
catalan C+E 16 97.6 80.1 70.0 93.2 65.6 55.3 66.6 13.6 7.0
english (C+E) 0 93.4 55.2 36.7 83.7 37.0 23.5 67.4 10.0 5.3
catalan (C+E) 0 92.2 42.1 28.3 84.8 27.9 18.0 67.8 7.4 4.8
"""  # measured in, pair, heads, values without the score: the sum of two edits, and (C+E) the joint one; 1,000 facts


def _table(text: str, keys: int) -> dict[tuple[str, ...], dict[str, float]]:
    lines = [line.split() for line in text.split("\n") if line.strip()]
    return {tuple(line[:keys]): dict(zip(COLUMNS, map(float, line[keys:]))) for line in lines}


K_SWEEP = {(measured, pair, int(heads)): values for (measured, pair, heads), values in _table(_K_SWEEP + _BILINGUAL, 3).items()}
"""(measured in, pair, heads) -> values; figure 9, and the bilingual approaches."""
ITI = {(float(alpha), int(heads)): values for (alpha, heads), values in _table(_ITI, 2).items()}
"""(alpha, heads) -> values."""
PORTABILITY = {(measured, pair): values for (measured, pair), values in _table(_PORTABILITY, 2).items()}
"""(measured in, pair) -> values."""


def values(method: str, measured: str, pair: str, heads: int, alpha: float) -> dict[str, float] | None:
    """What was published of a stage (see :data:`experiments.memat_results.Key`), or None."""
    if method == "memit" and len(pair) == 2:
        pair = pair[0] + measured[0].upper()  # without heads the second letter means nothing
    if method in ("memit", "memat"):
        return K_SWEEP.get((measured, pair, heads))
    if method == "ported":
        return PORTABILITY.get((measured, pair)) if heads == 16 else None
    return ITI.get((alpha, heads)) if (measured, pair) == ("english", "CE") else None
