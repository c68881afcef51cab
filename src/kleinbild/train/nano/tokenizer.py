"""nano's tokenizer: byte-level BPE learnt from the world's own sentences, in the files that transformers reads.

Case and closing punctuation are dropped by the tokenizer's normalizer, so that every reader of the folder drops them
alike. The chat template marks where the prompt begins and ends; the end mark is where a causal text encoder has read
everything.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from random import Random

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from kleinbild.nano.scenes.draw import Draw
from kleinbild.nano.scenes.lexicon import BACKGROUND_BY_NAME, COLORS, NOUN_BY_NAME, SIZE_BY_WORD, Noun
from kleinbild.nano.scenes.sprites import sprites
from kleinbild.nano.scenes.tasks import samples
from kleinbild.nano.specs import NANO

NUM_SENTENCES = 40_000
PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CHAT_TEMPLATE = "{% for message in messages %}{{ '<|im_start|>' + message['content'] + '<|im_end|>' }}{% endfor %}"


def train_tokenizer(seed: int = 0) -> Tokenizer:
    """The tokenizer, learnt from `NUM_SENTENCES` sentences; the same seed gives the same vocabulary."""
    random = Random(seed)
    draw = Draw(random, evaluation=False, codes=tuple(sprites()))
    sentences = (sample.wording(random) for sample in islice(samples(draw), NUM_SENTENCES))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=NANO.text_encoder.vocab_size,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in (PAD, START, END)],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sentences, trainer)
    return tokenizer


def normalizer() -> normalizers.Normalizer:
    """Lower case, no closing punctuation, and a space before a thing that begins the prompt.

    So "lion, teal" has the lion of "a lion on teal": elsewhere a name has a space before it, and without one it is cut into
    other tokens (8 of 30 such prompts were right, with it 29).
    """
    things = "|".join(sorted(NOUN_BY_NAME))
    beginnings = defaultdict(list)  # by their first letter: a pattern that matches no letter at all stops the library
    in_colors = (f"{color} (?:{things})" for color in COLORS)
    in_sizes = (f"{word} (?:(?:{'|'.join(COLORS)}) )?(?:{things})" for word in SIZE_BY_WORD)
    for name in (*sorted(NOUN_BY_NAME), *in_colors, *in_sizes):
        beginnings[name[0]].append(name[1:])
    return normalizers.Sequence(
        [
            normalizers.NFC(), normalizers.Lowercase(), normalizers.Strip(), normalizers.Replace(Regex(r"[.!?\s]+$"), ""),
            *(normalizers.Replace(Regex(rf"^{letter}(?=(?:{'|'.join(rests)})\b)"), f" {letter}")
              for letter, rests in beginnings.items()),
        ]
    )  # fmt: skip


def take_up_tokenizer(folder: Path, out: Path, nouns: Sequence[Noun] = ()) -> dict[int, list[int]]:
    """The tokenizer of trained weights, for the world as it is now: what it read it reads as before, and the words of
    `nouns` and the sizes, which it would cut into many pieces, whole. Returns the ids of those pieces by the new word's id.
    """
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.normalizer = normalizer()
    others = [*BACKGROUND_BY_NAME, *(name for name, noun in NOUN_BY_NAME.items() if noun not in nouns)]
    known = {word for name in others for word in _words(name)}
    new = [name for noun in nouns for name in (*noun.names, *noun.plurals)]
    words = dict.fromkeys(word for name in (*new, *SIZE_BY_WORD) for word in _words(name))
    vocabulary = tokenizer.get_vocab()
    cut = {word: [token.id for token in tokenizer.model.tokenize(word)] for word in words if word not in known}
    pieces = {word: ids for word, ids in cut.items() if len(ids) > 1}
    state = json.loads(tokenizer.to_str())
    if pieces:
        state["model"]["ignore_merges"] = True  # a word that has a token is not put together from pieces
    ids = {word: len(vocabulary) + index for index, word in enumerate(pieces)}
    state["model"]["vocab"] |= ids
    save_tokenizer(Tokenizer.from_str(json.dumps(state)), out)
    return {ids[word]: pieces[word] for word in pieces}


def _words(name: str) -> list[str]:
    """As the tokenizer's alphabet writes them, with the space before each."""
    return [word for word, _ in pre_tokenizers.ByteLevel(add_prefix_space=True).pre_tokenize_str(name)]


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Writes `tokenizer.json` and `tokenizer_config.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": PAD,
        "eos_token": END,
        "padding_side": "right",
        "model_max_length": NANO.text_encoder.max_tokens,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")
