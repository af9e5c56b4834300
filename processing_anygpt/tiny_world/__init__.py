"""The small world anygpt-tiny lives in: its sentences, pictures, tunes and voices.

Data preparation, evaluation and tests share these modules, so that a held-out item is held out everywhere.
"""
