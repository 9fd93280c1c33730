"""The 25 kinds of instructions of IFEval, each as a function of the response and its arguments.

Written from the descriptions in Zhou et al. 2023, arXiv 2311.07911, table 1, and from the arguments in its data. What
the descriptions leave open is settled by these rules:

- A *word* is a run of letters, digits and underscores; apostrophes and hyphens inside it belong to it.
- A *sentence* ends with ``.``, ``!``, ``?`` or ``…`` before white space, but not after an initial or one of a few
  abbreviations, or with ``。``, ``！``, ``？`` anywhere. Several of them, and closing quotes and brackets, are one end.
  Text without an end counts as one. A line break ends no sentence.
- Keywords and letters are looked for without regard to case, keywords also inside words, forbidden words not.
- The language is what the package ``langdetect`` says, seeded. Where it can say nothing, it is the wrong one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from alignment.utils.errors import BrokenJudgeError

Check = Callable[..., bool]

ANSWERS = ("My answer is yes.", "My answer is no.", "My answer is maybe.")

_WORD = re.compile(r"\w+(?:['’-]\w+)*")
_SENTENCE_END = re.compile(r"[.!?…]+[\"'”’)\]]*(?=\s|$)|[。！？]+[”’」』）]*")
_NO_END = re.compile(r"(?:\b(?:Mr|Mrs|Ms|Dr|Prof|St|Jr|Sr|vs|e\.g|i\.e|etc)|\b[A-Z])\.\Z")
_HIGHLIGHT = re.compile(r"\*\*[^\s*][^\n*]*\*\*|\*[^\s*][^\n*]*\*")
_BULLET = re.compile(r"^[ \t]*[*-][ \t]+\S", re.MULTILINE)
_PLACEHOLDER = re.compile(r"\[[^\[\]\n]+\]")
_TITLE = re.compile(r"<<\s*[^\s<>][^\n<>]*>>")
_FENCE = re.compile(r"\A```(?:json)?\s*\n?(.*?)\s*```\Z", re.DOTALL | re.IGNORECASE)
_PARAGRAPH_BREAK = re.compile(r"\n\s*\n")


def words(text: str) -> list[str]:
    """Returns a text's words.

    >>> words("Don't panic: well-known (42) things.")
    ["Don't", 'panic', 'well-known', '42', 'things']
    """
    return _WORD.findall(text)


def count_sentences(text: str) -> int:
    """Counts a text's sentences.

    >>> count_sentences('Dr. A. Who left... "Why?" Nobody knows')
    3
    """
    start = count = 0
    for end in _SENTENCE_END.finditer(text):
        if _NO_END.search(text[: end.end()]) is None:
            count += bool(_WORD.search(text[start : end.end()]))
            start = end.end()
    return count + bool(_WORD.search(text[start:]))


def compare(count: int, relation: str, number: int) -> bool:
    """Says whether a count is ``at least`` a number or ``less than`` it.

    Raises:
        ValueError: Another relation.
    """
    if relation == "at least":
        return count >= number
    if relation == "less than":
        return count < number
    raise ValueError(f"relation is {relation!r}, expected 'at least' or 'less than'")


def is_language(text: str, language: str) -> bool:
    """Says whether a text is in a language, named by its ISO 639-1 code.

    Raises:
        BrokenJudgeError: The package ``langdetect`` is not installed.
    """
    try:
        from langdetect import DetectorFactory, LangDetectException, detect
    except ImportError as error:
        raise BrokenJudgeError(
            "checking a response's language needs the package langdetect, which is not installed: "
            "pip install 'alignment[ifeval]' (or pip install langdetect)"
        ) from error
    DetectorFactory.seed = 0
    try:
        return detect(text).split("-")[0] == language.split("-")[0]
    except LangDetectException:
        return False


def existence(text: str, *, keywords: list[str]) -> bool:
    """Include keywords."""
    return all(keyword.lower() in text.lower() for keyword in keywords)


def frequency(text: str, *, keyword: str, frequency: int, relation: str) -> bool:
    """The word should appear so many times."""
    return compare(text.lower().count(keyword.lower()), relation, frequency)


def forbidden_words(text: str, *, forbidden_words: list[str]) -> bool:
    """Do not include keywords."""
    return not any(re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE) for word in forbidden_words)


def letter_frequency(text: str, *, letter: str, let_frequency: int, let_relation: str) -> bool:
    """The letter should appear so many times."""
    return compare(text.lower().count(letter.lower()), let_relation, let_frequency)


def response_language(text: str, *, language: str) -> bool:
    """The entire response should be in this language."""
    return is_language(text, language)


def number_paragraphs(text: str, *, num_paragraphs: int) -> bool:
    """So many paragraphs, separated by the divider ``***``."""
    return len(_separated(text, "***")) == num_paragraphs


def number_words(text: str, *, num_words: int, relation: str) -> bool:
    """At least or less than so many words."""
    return compare(len(words(text)), relation, num_words)


def number_sentences(text: str, *, num_sentences: int, relation: str) -> bool:
    """At least or less than so many sentences."""
    return compare(count_sentences(text), relation, num_sentences)


def nth_paragraph_first_word(text: str, *, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    """So many paragraphs, separated by two line breaks; the n-th starts with this word."""
    paragraphs = [paragraph for paragraph in _PARAGRAPH_BREAK.split(text) if paragraph.strip()]
    if len(paragraphs) != num_paragraphs or not 1 <= nth_paragraph <= num_paragraphs:
        return False
    return [word.lower() for word in words(paragraphs[nth_paragraph - 1])[:1]] == [first_word.lower()]


def postscript(text: str, *, postscript_marker: str) -> bool:
    """A postscript that starts with this marker."""
    marker = r"\s*".join(re.escape(character) for character in postscript_marker if not character.isspace())
    return re.search(rf"(?<![\w.]){marker}", text, re.IGNORECASE) is not None


def number_placeholders(text: str, *, num_placeholders: int) -> bool:
    """At least so many placeholders in square brackets."""
    return len(_PLACEHOLDER.findall(text)) >= num_placeholders


def number_bullet_lists(text: str, *, num_bullets: int) -> bool:
    """Exactly so many bullet points in markdown."""
    return len(_BULLET.findall(text)) == num_bullets


def title(text: str) -> bool:
    """A title in double angular brackets."""
    return _TITLE.search(text) is not None


def constrained_response(text: str) -> bool:
    """One of three answers, and not two of them."""
    return sum(answer in text for answer in ANSWERS) == 1


def number_highlighted_sections(text: str, *, num_highlights: int) -> bool:
    """At least so many sections highlighted with markdown's asterisks."""
    return len(_HIGHLIGHT.findall(text)) >= num_highlights


def multiple_sections(text: str, *, section_spliter: str, num_sections: int) -> bool:
    """At least so many sections, each beginning with the splitter and a number."""
    return len(re.findall(rf"(?<!\w){re.escape(section_spliter)}\s?\d+", text)) >= num_sections


def json_format(text: str) -> bool:
    """The entire response is JSON, which may stand between markdown's ticks."""
    fenced = _FENCE.match(text.strip())
    try:
        json.loads(fenced[1] if fenced else text)
    except (ValueError, RecursionError):
        return False
    return True


def two_responses(text: str) -> bool:
    """Two different responses, separated by six asterisks."""
    parts = _separated(text, "******")
    return len(parts) == 2 and all(parts) and parts[0] != parts[1]


def repeat_prompt(text: str, *, prompt_to_repeat: str) -> bool:
    """The response begins with the request, word for word."""
    return text.strip().lower().startswith(prompt_to_repeat.strip().lower())


def english_capital(text: str) -> bool:
    """In English, in capital letters only."""
    return text.isupper() and is_language(text, "en")


def english_lowercase(text: str) -> bool:
    """In English, in lowercase letters only."""
    return text.islower() and is_language(text, "en")


def capital_word_frequency(text: str, *, capital_frequency: int, capital_relation: str) -> bool:
    """Words with all capital letters should appear so many times."""
    return compare(sum(map(str.isupper, words(text))), capital_relation, capital_frequency)


def end_checker(text: str, *, end_phrase: str) -> bool:
    """Finish with this phrase; quotation marks around the response do not matter."""
    return text.strip().strip('"').rstrip().lower().endswith(end_phrase.strip().strip('"').lower())


def quotation(text: str) -> bool:
    """The entire response is between double quotation marks."""
    stripped = text.strip()
    return len(stripped) > 1 and stripped[0] == stripped[-1] == '"'


def no_comma(text: str) -> bool:
    """No commas."""
    return "," not in text


CHECKS: dict[str, Check] = {
    "keywords:existence": existence,
    "keywords:frequency": frequency,
    "keywords:forbidden_words": forbidden_words,
    "keywords:letter_frequency": letter_frequency,
    "language:response_language": response_language,
    "length_constraints:number_sentences": number_sentences,
    "length_constraints:number_paragraphs": number_paragraphs,
    "length_constraints:number_words": number_words,
    "length_constraints:nth_paragraph_first_word": nth_paragraph_first_word,
    "detectable_content:number_placeholders": number_placeholders,
    "detectable_content:postscript": postscript,
    "detectable_format:number_bullet_lists": number_bullet_lists,
    "detectable_format:constrained_response": constrained_response,
    "detectable_format:number_highlighted_sections": number_highlighted_sections,
    "detectable_format:multiple_sections": multiple_sections,
    "detectable_format:json_format": json_format,
    "detectable_format:title": title,
    "combination:two_responses": two_responses,
    "combination:repeat_prompt": repeat_prompt,
    "startend:end_checker": end_checker,
    "startend:quotation": quotation,
    "change_case:capital_word_frequency": capital_word_frequency,
    "change_case:english_capital": english_capital,
    "change_case:english_lowercase": english_lowercase,
    "punctuation:no_comma": no_comma,
}
"""By the names that the data give them."""


def _separated(text: str, separator: str) -> list[Any]:
    """Returns what stands between separators; nothing before the first and behind the last is no part."""
    parts = [part.strip() for part in text.split(separator)]
    start = 0 if parts[0] else 1
    return parts[start : len(parts) if parts[-1] else -1]
