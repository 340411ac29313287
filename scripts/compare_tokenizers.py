#!/usr/bin/env python3
"""Compares mpinfer's tokenizer with Hugging Face `tokenizers` (PyPI): ids and decoded text over mixed random strings.

    compare_tokenizers.py TOOL DIR [--strings 100000] [--seed 0]

TOOL is tests/tokenizer_tool of a build, DIR holds a tokenizer.json. Prints the first differences; exit 1 if there is one.
"""
import argparse
import json
import os
import random
import subprocess
import sys
import unicodedata

from tokenizers import Tokenizer

SCRIPTS = [(0x20, 0x7E), (0xA0, 0x17F), (0x370, 0x3FF), (0x400, 0x4FF), (0x590, 0x5FF), (0x600, 0x6FF), (0x900, 0x97F),
           (0xE00, 0xE7F), (0x1100, 0x11FF), (0x1E00, 0x1EFF), (0x2000, 0x206F), (0x2070, 0x20CF), (0x2190, 0x21FF),
           (0x3040, 0x30FF), (0x4E00, 0x9FFF), (0xAC00, 0xD7A3), (0xFB00, 0xFB4F), (0xFF00, 0xFFEF), (0x1F300, 0x1F6FF),
           (0x1F900, 0x1F9FF), (0x10400, 0x1044F), (0x1D400, 0x1D7FF), (0x20000, 0x200FF), (0x0300, 0x036F)]
NEWER = [(0x10D4A, 0x10D65), (0x1E4D0, 0x1E4F9), (0x31350, 0x31360), (0x2EBF0, 0x2EBFF), (0x10EC2, 0x10EC4), (0x11F00, 0x11F10),
         (0x1E5D0, 0x1E5F0), (0x1CD00, 0x1CD20), (0x16D40, 0x16D79)]  # Unicode 15 to 16
SPACES = [" ", "  ", "   ", "\n", "\n\n", "\r\n", "\t", " \n ", "\u00a0", "\u3000", "\u2028", "\u180e", "\u200b", "\x85", "\x0b"]
WORDS = ("the of and a to in is you that it he was for on are as with his they I at be this have from or one had by word but "
         "don't I'll 'ſ x'ſy 'Ll WE'VE they'RE she'd it's o'clock naïve café Übermäßig 東京 こんにちは Привет مرحبا नमस्ते สวัสดี 안녕하세요 "
         "12345 3.14159 1,000,000 0x1F 2024-05-01 foo_bar camelCase HTTPServer JSONFile snake_case x+=1; ==> != //comment "
         "<html> </div> {\"key\": [1, 2]} def f(x): return x**2 #include <stdio.h> 👍🏽 👨‍👩‍👧‍👦 🇩🇪 e\u0301 ﬁ ① ½ Ⅷ ſ K İ ı").split(" ")
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<s>", "</s>", "<unk>", "<0x41>", "▁", "Ġ", "<｜begin▁of▁sentence｜>"]


def assigned(c):
    return unicodedata.category(c) not in ("Cn", "Cs")


def random_string(rng):
    out = []
    for _ in range(rng.choice([1, 2, 3, 5, 8, 13, 40])):
        kind = rng.random()
        if kind < 0.4:
            out.append(rng.choice(WORDS))
        elif kind < 0.6:
            out.append(rng.choice(SPACES))
        elif kind < 0.9:
            low, high = rng.choice(SCRIPTS)
            out.append("".join(c for c in (chr(rng.randint(low, high)) for _ in range(rng.randint(1, 6))) if assigned(c)))
        elif kind < 0.91:
            low, high = rng.choice(NEWER)
            out.append("".join(chr(rng.randint(low, high)) for _ in range(rng.randint(1, 4))))
        elif kind < 0.94:
            out.append(chr(rng.randint(0, 0x1F)))
        elif kind < 0.97:
            out.append(rng.choice(SPECIALS))
        else:
            out.append(rng.choice(["a", "^", " ", "0", "é", "\n"]) * rng.randint(2, 60))
        if rng.random() < 0.5:
            out.append(" ")
    return "".join(out)


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("tool")
    ap.add_argument("directory")
    ap.add_argument("--strings", type=int, default=100000)
    ap.add_argument("--seed", type=int, default=0)
    a = ap.parse_args()
    oracle = Tokenizer.from_file(os.path.join(a.directory, "tokenizer.json"))
    oracle.no_padding()
    oracle.no_truncation()
    rng = random.Random(a.seed)
    strings = ["", "a" * 1000000, "^" * 100000, " " * 100000, "1" * 100000] + [random_string(rng) for _ in range(a.strings)]
    text = "".join(json.dumps(s) + "\n" for s in strings)
    done = subprocess.run([a.tool, a.directory], input=text.encode(), stdout=subprocess.PIPE, check=True)
    lines = done.stdout.decode().split("\n")
    assert len(lines) == len(strings) + 1, (len(lines), len(strings))
    different = 0
    for s, line in zip(strings, lines):
        ours = json.loads(line)
        ids = oracle.encode(s, add_special_tokens=False).ids
        special = oracle.encode(s, add_special_tokens=True).ids
        theirs = {"ids": ids, "special": special, "text": oracle.decode(special, skip_special_tokens=False),
                  "shown": oracle.decode(special, skip_special_tokens=True), "streamed": True}
        wrong = [k for k in theirs if ours.get(k) != theirs[k]]
        if wrong:
            different += 1
            if different <= 10:
                k = wrong[0]
                print("%r\n  %s ours   %s\n  %s theirs %s" % (s[:120], k, str(ours.get(k, ours))[:300], k, str(theirs[k])[:300]))
    print("%s: %d strings, %d different" % (a.directory, len(strings), different))
    sys.exit(1 if different else 0)


if __name__ == "__main__":
    main()
