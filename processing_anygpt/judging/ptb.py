"""Tokens of the Penn Treebank's kind, as captions are cut for CIDEr: a small stand-in for Stanford's PTBTokenizer.

pycocoevalcap pipes captions through that Java program (CoreNLP 3.4.1, `-lowerCase`) and drops punctuation. These
rules, found by asking the program, cut captions the same way without Java: of 3,185 lines of English prose and odd
captions all but 8. `tests/goldens/metrics/ptb.json` lists sentences for which they agree. Known to differ: emoticons
of letters, names of files, quotation marks inside words.
"""

import re

# Kept with their full stop, wherever they stand (found by asking; "sat.", "sun.", "in.", "lbs." are not).
_ABBREVIATIONS = """
    adj al ala apr ariz assn asst aug ave bldg blvd bros calif capt cf co col conn corp cpl dec dept dr est etc ext
    feb fla fri ft gen gov hon inc ind jan jr jul jun kan ky lt ltd maj mar md messrs mich minn mo mon mont mr mrs
    ms mt nov oct okla ph.d prof pvt rd rep rev sen sep sept sgt sq sr st tel tenn thu thurs tue tues univ va vs vt
    wed wis wyo
""".split()

_REWRITES = [
    (re.compile(pattern), replacement)
    for pattern, replacement in [
        ("[‘’]", "'"),
        ("[“”«»]|``|''", '"'),
        ("[–—]", " -- "),
        ("…", " ... "),
        ("&(?:amp|quot|apos|lt|gt|nbsp);", lambda entity: _ENTITIES[entity[0]]),
        (r"\b(?:can(?=not\b)|(?:gon|wan)(?=na\b)|got(?=ta\b)|(?:lem|gim)(?=me\b))", r"\g<0> "),
        (r"(?<!\w)('t)(is|was)\b", r"\1 \2"),
        (r"\b(more)('n)\b", r"\1 \2"),
        (r"(?<=\w)'n'(?=\w)", " 'n' "),
        (r"(?<=[a-z])n't\b", " n't"),
        (r"(?<=\w)'(s|re|ve|ll|d|m)\b", r" '\1"),
        (r"\by'(?=all\b)", "y' "),
        (r"\bno\.(?=\d)", "no. "),
    ]
]
_ENTITIES = {"&amp;": "&", "&quot;": '"', "&apos;": "'", "&lt;": "<", "&gt;": ">", "&nbsp;": " "}

_TOKEN = re.compile(
    "|".join(
        [
            r"https?://\S*[^\s.,:;!?'\")\]]|<[a-z/!][^<>]*>|[#@][a-z_]\w*|\w+@\w+(?:\.\w+)*",
            r"'(?:n'|\d\ds?\b|em\b|cause\b|til\b|n\b|s\b|re\b|ve\b|ll\b|d\b|m\b|t\b)|n't\b|\by'(?=\s)",
            r"(?<!\w)(?:" + "|".join(map(re.escape, _ABBREVIATIONS)) + r")\.(?!\w)|\bno\.(?=\s?\d)",
            r"(?<!\w)(?:[a-z]\.)+(?:[a-z](?!\w))?(?![\w.])",  # u.s. and a.m, and any letter with a full stop
            r"(?<!\w)[-+]?\d*(?:[.,:]\d+)+(?:-\w+)*|[-+]\d+(?:[-/]\w+)*|\.\d+(?:[.,:]\d+)*",
            r"us\$|\w+(?:(?:[-/&]|\.(?=[a-z])|(?<=[a-z])'(?=[a-z]))\w+)*",
            r"(?<!\w)[:;]-?[()]",
            r"[?!]+|#+|[(){}\[\]]|[@~^=<>|\\*+&%$/°¢£€]",
        ]
    )
)
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
_SYMBOLS = {"¢": "cents", "£": "#", "€": "$"}
_PUNCTUATION = {"?", "!"}  # what else pycocoevalcap drops makes no token here; "!!" it keeps, and brackets, by mistake


def tokens(text: str) -> list[str]:
    """Lower-case tokens of one caption, without punctuation."""
    text = text.lower()
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text)
    found = []
    for token in _TOKEN.findall(text):
        if token not in _PUNCTUATION:
            token = _SYMBOLS.get(token, token)
            found.append("".join(_BRACKETS.get(character, character) for character in token))
    return found
