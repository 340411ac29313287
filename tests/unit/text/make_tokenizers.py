#!/usr/bin/env python3
"""Writes the small tokenizers of the unit tests and what Hugging Face `tokenizers` (PyPI) makes of a few texts with each.

    make_tokenizers.py     (writes tests/unit/text/tokenizers/NAME/{tokenizer.json,expected.jsonl}; tokenizers 0.23.3)

One family or feature a folder. Training is deterministic, so a second run changes nothing.
"""
import json
import os
import random

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

HERE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "tokenizers")
GPT2 = None
LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
O200K = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
         r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
         r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")
DEEPSEEK = [r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+",
            "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+|"
            " ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+"]
CORPUS = ("the quick brown fox jumps over the lazy dog. They're here, we've seen it's 12345 and 678; don't DON'T "
          "while (i < 10) { x += 1; }  // comment\n\n    return value;\r\n\tnaïve café Übermaß ДОМ дом ДОМ 東京都 日本語 "
          "hello Hello HELLO world World the then there these other mother brother thing nothing something " * 8)
TEXTS = ["", " ", "a", "Hello world", "  Hello  world  ", "don't DON'T they'RE we'Ve I'm it'S 'sup", "12345 678 9", "a\n\nb\r\n c\t\td \n ",
         "naïve café ①②½ ſ K", "東京都は日本語 テスト", "Привет дом 👍🏽 👨‍👩‍👧 🇩🇪", "e\u0301 \ufb01 \u212b \u1e9b\u0323", "x\u180ey \u00a0z\u3000w\u2028v\x85u",
         "\x00\x01\x7f", "foo_bar camelCase HTTPServer http://a.b/c?d=e&f", "<s>hi</s> <tok> a<tok>b <tok>", "<|end|> text<|end|>more <|end|>",
         "word wordy words sword word", "İstanbul ΣΊΣΥΦΟΣ ǅ", "^" * 70, "a" * 130, "\u0301\u0301x ", "𐐀𐐨 𝒜𝓫 𠀀", "the<mask>  quick <mask>fox", "▁x ▁▁y",
         "\uc694\u11a7\u1100\u1161\u11a8 \U0001e4ed\U0001e4ef a\U0001e4ef\u0301 \u08a0\u0898\u0334 \u32ff", "\U00010d50\U00010d70 \U00031350"]


def byte_level(pattern, digits=False, **model):
    """Byte-level BPE trained on CORPUS."""
    tok = Tokenizer(models.BPE(**model))
    steps = []
    if digits:
        steps.append(pre_tokenizers.Digits(individual_digits=True))
    for regex in [] if pattern is GPT2 else pattern if isinstance(pattern, list) else [pattern]:
        steps.append(pre_tokenizers.Split(Regex(regex), "isolated"))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is GPT2))
    tok.pre_tokenizer = steps[0] if len(steps) == 1 else pre_tokenizers.Sequence(steps)
    tok.decoder = decoders.ByteLevel()
    tok.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(vocab_size=420, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False)
    tok.train_from_iterator([CORPUS], trainer)
    return tok


def sentence_piece(alphabet):
    """SentencePiece-style BPE in Llama's form: <unk> <s> </s>, 256 byte tokens, characters, merges."""
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2}
    for byte in range(256):
        vocab["<0x%02X>" % byte] = len(vocab)
    for c in alphabet:
        vocab[c] = len(vocab)
    merges = []
    for left, right in [("▁", "t"), ("h", "e"), ("▁t", "he"), ("▁", "a"), ("o", "r"), ("▁", "w"), ("▁w", "or"), ("▁wor", "d"), ("▁", "▁"),
                        ("▁▁", "▁▁"), ("l", "l"), ("e", "ll"), ("ell", "o"), ("H", "ello"), ("▁", "Hello"), ("a", "a"), ("aa", "aa")]:
        merges.append((left, right))
        vocab[left + right] = len(vocab)
    return vocab, merges


def llama(byte_fallback=True, fuse_unk=True):
    vocab, merges = sentence_piece("▁abcdefghijklmnopqrstuvwxyzHTDEIVRM'.,0123456789東京é")
    tok = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=fuse_unk, byte_fallback=byte_fallback))
    tok.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tok.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    tok.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    tok.add_special_tokens(["<unk>", "<s>", "</s>"])
    return tok


def metaspace(scheme, split):
    tok = llama()
    tok.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Strip(), normalizers.Lowercase()])
    tok.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme=scheme, split=split)
    tok.decoder = decoders.Metaspace("▁", prepend_scheme=scheme)
    return tok


def added(tok):
    tok.add_special_tokens([AddedToken("<|end|>", special=True, rstrip=True), AddedToken("<mask>", special=True, lstrip=True)])
    tok.add_tokens([AddedToken("<tok>", normalized=False), AddedToken("word", single_word=True), AddedToken("Hello", normalized=True),
                    AddedToken("<tok> a", normalized=False)])
    return tok


def splits(behavior, invert):
    tok = byte_level(GPT2)
    tok.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(r"[\s,]"), behavior, invert), pre_tokenizers.Split("o", behavior),
                                                 pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=False)])
    return tok


def sequence(*steps):
    tok = byte_level(GPT2)
    tok.pre_tokenizer = pre_tokenizers.Sequence([*steps, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    return tok


def normalized(*steps, pattern=GPT2):
    tok = byte_level(pattern)
    tok.normalizer = normalizers.Sequence(list(steps))
    return added(tok)


TOKENIZERS = {
    "gpt2": lambda: added(byte_level(GPT2)),
    "smollm": lambda: byte_level(GPT2, digits=True),
    "llama3": lambda: byte_level(LLAMA3, ignore_merges=True),
    "qwen2": lambda: normalized(normalizers.NFC(), pattern=QWEN2),
    "o200k": lambda: byte_level(O200K),
    "deepseek": lambda: byte_level(DEEPSEEK),
    "nfkd_lower": lambda: normalized(normalizers.NFKD(), normalizers.Lowercase()),
    "nfd_replace": lambda: normalized(normalizers.NFD(), normalizers.Replace(Regex(r"\p{M}+"), ""), normalizers.Strip(left=True, right=False)),
    "llama": llama,
    "unk": lambda: llama(byte_fallback=False, fuse_unk=False),
    "unk_fused": lambda: added(llama(byte_fallback=False)),
    "metaspace_always": lambda: metaspace("always", True),
    "metaspace_first": lambda: added(metaspace("first", False)),
    "split_removed": lambda: splits("removed", False),
    "split_previous": lambda: splits("merged_with_previous", False),
    "split_next": lambda: splits("merged_with_next", True),
    "split_contiguous": lambda: splits("contiguous", False),
    "punctuation": lambda: sequence(pre_tokenizers.Punctuation("isolated"), pre_tokenizers.Digits(individual_digits=False)),
    "whitespace": lambda: sequence(pre_tokenizers.Whitespace()),
    "whitespace_split": lambda: sequence(pre_tokenizers.WhitespaceSplit()),
}


def texts(rng):
    words = " ".join(TEXTS[1:19]).split(" ")
    yield from TEXTS
    for _ in range(25):
        yield "".join(rng.choice(words) + rng.choice(["", " ", "  ", "\n", "<tok>", "1"]) for _ in range(rng.randint(1, 12)))


def main():
    for name, make in TOKENIZERS.items():
        tok = make()
        folder = os.path.join(HERE, name)
        os.makedirs(folder, exist_ok=True)
        data = json.loads(tok.to_str(pretty=False))
        with open(os.path.join(folder, "tokenizer.json"), "w", encoding="utf8") as out:
            json.dump(data, out, ensure_ascii=False, separators=(",", ":"))
            out.write("\n")
        with open(os.path.join(folder, "expected.jsonl"), "w", encoding="utf8") as out:
            for text in texts(random.Random(7)):
                ids = tok.encode(text, add_special_tokens=False).ids
                special = tok.encode(text, add_special_tokens=True).ids
                row = {"text": text, "ids": ids, "special": special, "decoded": tok.decode(special, skip_special_tokens=False),
                       "shown": tok.decode(special, skip_special_tokens=True)}
                out.write(json.dumps(row, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
