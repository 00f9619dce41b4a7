# SPDX-License-Identifier: Apache-2.0
"""Make tests/golden/tokenizer: small tokenizers in the four pipelines that Requite reads (and one with the rarer options),
and the ids that the `tokenizers` library gives for a set of texts.

    pip install tokenizers==0.23.3
    python tests/make_tokenizer_golden.py [--smollm2-texts FILE]   # writes tests/golden/tokenizer/*.json
    python tests/make_tokenizer_golden.py --check FOLDER           # FOLDER/*.json, written by Requite, against the golden ids
    python tests/make_tokenizer_golden.py --corpus                 # writes tests/data/fuzz/tokenizer
    python tests/make_tokenizer_golden.py --newer                  # the table `newer` of host/tokenizer_unicode.c

The vocabularies are trained here on the text below. They are tiny, but every rule of the real ones is in them.
"""
import argparse
import json
import os
import random
import struct
import sys
import unicodedata

import tokenizers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

HERE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "golden", "tokenizer")

LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
          r"\s+(?!\S)|\s+")
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")

TRAINING = """
A quantizer takes the weights of a model and writes them with fewer bits. It reads one layer at a time, looks at the
inputs which that layer sees on a few texts, and moves the error of the columns that are done to those that are still
open. Then it packs the codes, and a kernel reads them back while it multiplies. We measure the result: the size of the
file, the speed of a token, and how well the small model still predicts a text that it has not seen before.
Numbers: 0 1 2 3 4 5 6 7 8 9 10 11 12 16 32 64 128 256 512 1024 2048 4096, 3.14159, 2.71828, 1,000,000, 50 %, 12:30, 2024-05-17.
I'm, you're, he's, we've, they'll, she'd, don't, can't, won't, isn't; I'M, YOU'RE, HE'S, WE'VE, THEY'LL, SHE'D, DON'T.
int main(void) { for (int i = 0; i < n; ++i) { sum += a[i] * b[i]; } return sum == 0.0f ? 1 : 0; }
    if (status != OK) {
        return fail(status, "tensor %s has %d rows", name, rows);
    }
\tdef forward(self, x):\n\t\treturn self.down(self.act(self.gate(x)) * self.up(x))\n
# heading\n\n- item one\n- item two\n\n| a | b |\n|---|---|\n| 1 | 2 |\n
Die Gewichte werden gerundet, und der Fehler geht auf die übrigen Spalten über; schöne Grüße aus Köln, Straße, Äpfel.
Les poids sont arrondis et l'erreur passe aux colonnes qui restent : déjà vu, à côté, où ça, œuvre, naïve, garçon.
Los pesos se redondean y el error pasa a las columnas que quedan. ¿Qué pasó? ¡Mañana será otro día! El niño pequeño.
Веса округляются, а ошибка переходит на оставшиеся столбцы. Привет, мир! Это небольшой текст для проверки.
Τα βάρη στρογγυλοποιούνται και το σφάλμα περνά στις υπόλοιπες στήλες. Καλημέρα κόσμε.
权重被舍入，误差转移到剩余的列。你好，世界！这是一个用于测试的小文本。
重みは丸められ、誤差は残りの列に移ります。こんにちは世界。これは小さなテストです。カタカナ
가중치는 반올림되고 오차는 남은 열로 옮겨집니다. 안녕하세요 세계.
الأوزان تُقرَّب وينتقل الخطأ إلى الأعمدة الباقية. مرحبا بالعالم. שלום עולם, זה טקסט קטן.
नमस्ते दुनिया। यह एक छोटा पाठ है। สวัสดีชาวโลก Tiếng Việt có dấu.
🙂 👍 🎉 👩‍👩‍👧 🇩🇪 ❤️
"""


def texts():
    rng = random.Random(7)
    odd = [0x09, 0x0A, 0x0D, 0x20, 0x85, 0xA0, 0x180E, 0x200B, 0x200C, 0x200D, 0x2028, 0x202F, 0x3000, 0xFEFF, 0x301, 0x323,
           0x41, 0x65, 0x73, 0x27, 0x31, 0x660, 0x966, 0xB2, 0xBD, 0x216B, 0x2460, 0x4E00, 0x1100, 0x1161, 0xAC00, 0x1F600,
           0x212B, 0x17F, 0x2CEB0, 0x31350, 0x1C89, 0x16D40, 0x1E4F0, 0x11DE0, 0x10FFFF, 0xE000, 0x1B, 0x1C, 0x7F, 0xDF]
    long_word = "".join(rng.choice("etaoinshrdlu") for _ in range(600))
    return [
        "", " ", "  ", "   ", "\n", "\r\n", "\t", "\n\n\n", " \n ", "a", " a", "a ", "  a  ", "Hello world", "hello  world",
        "Hello, World!  How are you?", "  two  spaces  \n\n\n tabs\t\tx", "trailing space \n", "line\r\nline\r\n\r\nline", "\r", "\r\r\n",
        "a\n b\n  c\n   d\n\te", "     five\n", "x     \n     y", "\t\t\t\tdeep", " \t \t mixed", "1", "12", "123", "1234", "12345",
        "1234567890 3.14159 1,000,000", " 42 ", "a1b2c3", "v2.0-rc1", "٣١٤ ४५६ ๗๘๙", "½ ² Ⅻ ① 〇 一二三", "0x1F4A9 1e-10",
        "I'm you're he's we've they'll she'd don't", "I'M YOU'RE HE'S WE'VE THEY'LL SHE'D DON'T", "'s 'S 'ſ 'ſt ''s 'll'LL",
        "I’m don’t", "'tis 'twas rock'n'roll", "'", "''", "日本語のテキスト 漢字", "你好，世界！这是一个用于测试的小文本。",
        "안녕하세요 세계", "Привет, мир! Ёлка", "Καλημέρα κόσμε", "مرحبا بالعالم ١٢٣", "שלום עולם ־ נִקּוּד", "नमस्ते दुनिया क्षत्रिय",
        "สวัสดีชาวโลก", "Tiếng Việt có dấu", "e\u0301 é E\u0301 É a\u0323\u0301 a\u0301\u0323", "A\u030A Å Å Ω Ω K K", "ﬁ ﬂ ﬃ ß ẞ",
        "\u1112\u1161\u11ab\u1100\u1173\u11af", "q\u0307\u0323 \u1E0B\u0323", "\u0344 \u0958 \u2ADC \uFB1D", "x\u0301\u0898\u0323\u0301 \u0c15\u0c3c\u0323",
        "\U00011935\U00011930 \U00011938", "\U0001D15E \u2126 \u0374 \u037E", "👩‍👩‍👧 🇩🇪 👍🏽 ❤️ 🙂🙂🙂", "a\u200bb\u200cc\u200dd\ufeffe",
        "no\u00a0break\u202fspace\u3000wide\u2003em", "a\u180eb \u180e c", "x\u0085y\u2028z\u2029w", "a\x1cb\x1dc\x1ed\x1fe", "nul\x00 \x01\x02\x04\x06\x7f",
        "\u1c89\u1c8a \U00016D40\U00016D63 \U0001E5D0 \U00031350\U0002EBF0", "\U0001E4F0\U0001E5F1 \U00011DE0\U00016FF4 \U0001CCF0",
        "\U000105C0 \U0001CD00 \U0010FFFF \uE000 \U000F0000", "https://example.org/a?b=c&d=%20#frag", "name@example.org",
        "for (int i = 0; i < n; ++i) {\n    a[i] = b[i];\n}\n", "a != b && c == d || !e // comment", "----====****////",
        "!!!...???\n\n\n", "... ... \r\n ...", "(\u201cquoted\u201d) \u2014 dash\u2026", "<|im_start|>user\nhi<|im_end|>\n",
        "<|im_start|><|im_end|><|endoftext|>", "<|im_start |> <|im_star", "a<|endoftext|>b <|endoftext|> c", "<|endoftext|>", "<|endof<|endoftext|>text|>",
        "<tool> <tool>x</tool>", "word<tool>word", "new york New York", "cafe\u0301 café CAFÉ", "decafé café-au-lait un café", "a [SEP]  b[SEP]c \n[SEP]\n d",
        "[MASK] a  [MASK]  b", "[SEP] [MASK] [SEP]", long_word, "a" * 300, " " * 100, "ab" * 64 + " " + "!" * 64, "\n" * 50 + "x",
        "été" * 40, "漢" * 60, "".join(chr(rng.choice(odd)) for _ in range(120)), "".join(chr(rng.choice(odd)) for _ in range(120)),
        "".join(chr(rng.choice(odd)) for _ in range(120)), TRAINING[:700],
    ]


def byte_level_tokenizer(pre, normalizer, n_tokens, ignore_merges, specials):
    t = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    if normalizer:
        t.normalizer = normalizer
    t.pre_tokenizer = pre
    t.decoder = decoders.ByteLevel()
    t.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(vocab_size=n_tokens, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
                                  special_tokens=specials, show_progress=False)
    t.train_from_iterator([TRAINING] * 2, trainer)
    return t


def make_all():
    chat = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    byte = pre_tokenizers.ByteLevel
    made = {}
    made["gpt2"] = byte_level_tokenizer(byte(add_prefix_space=False, use_regex=True), None, 700, False, chat[:1])
    made["smollm2"] = byte_level_tokenizer(
        pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte(add_prefix_space=False, use_regex=True)]),
        None, 800, False, chat)

    split = pre_tokenizers.Split
    t = byte_level_tokenizer(pre_tokenizers.Sequence([split(Regex(LLAMA3), "isolated"), byte(add_prefix_space=False, use_regex=False)]),
                             None, 800, True, [])
    t.add_special_tokens(["<|begin_of_text|>", "<|end_of_text|>"] + chat)
    bos = t.token_to_id("<|begin_of_text|>")
    t.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), processors.TemplateProcessing(
        single="<|begin_of_text|> $A", pair="<|begin_of_text|> $A <|begin_of_text|>:1 $B:1", special_tokens=[("<|begin_of_text|>", bos)])])
    # Whole words that no merge reaches: only ignore_merges finds them.
    state = json.loads(t.to_str())
    state["model"]["merges"] = [m for m in state["model"]["merges"] if "".join(m) not in ("Ġlayer", "Ġmodel", "Ġtext")]
    made["llama3"] = Tokenizer.from_str(json.dumps(state))

    t = byte_level_tokenizer(pre_tokenizers.Sequence([split(Regex(QWEN2), "isolated"), byte(add_prefix_space=False, use_regex=False)]),
                             normalizers.NFC(), 800, False, [])
    t.add_special_tokens(chat)
    t.add_tokens([AddedToken("<tool>", normalized=False, special=False), AddedToken("</tool>", normalized=False, special=False)])
    made["qwen2"] = t

    # The rarer options together: prefix space, split by a string and by the inverse of a pattern, token flags, template
    # on both sides, bytes without a token. Its vocabulary has no byte above 0xe9, so that unk_token is used.
    t = byte_level_tokenizer(
        pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=False), split("!!", "removed"),
                                 split(Regex(r"[^\S\n]{2,4}|\p{Lu}?\p{Ll}+(?=\s)|^\p{P}$|[a-f\-x]+?x|(?<=\d)[^\d]"), "isolated"),
                                 split(Regex(r"[^\x{2028}\u3000]+"), "removed", invert=True), byte(add_prefix_space=True, use_regex=True)]),
        normalizers.Sequence([normalizers.NFC()]), 650, False, ["<unk>", "<s>", "</s>"])
    state = json.loads(t.to_str())
    model = state["model"]
    gone = {c for b, c in enumerate(sorted_alphabet()) if b >= 0xEA or b in (0x04, 0x0D)}
    keep = [tok for tok in model["vocab"] if not (set(tok) & gone)]
    model["vocab"] = {tok: i for i, tok in enumerate(keep)}
    model["merges"] = [" ".join(m) for m in model["merges"] if "".join(m) in model["vocab"]]
    model["unk_token"], model["fuse_unk"] = "<unk>", True
    for a in state["added_tokens"]:
        a["id"] = model["vocab"][a["content"]]
    t = Tokenizer.from_str(json.dumps(state))
    t.add_tokens([AddedToken("[SEP]", lstrip=True, rstrip=True, normalized=False), AddedToken("[MASK]", lstrip=True, special=True),
                  AddedToken("café", single_word=True, normalized=True), AddedToken("new york", single_word=True),
                  AddedToken("<|end", normalized=False), AddedToken("<|endoftext|>", normalized=False)])
    t.post_processor = processors.TemplateProcessing(single="<s> $A </s> </s>", pair="<s> $A </s> $B </s>", special_tokens=[
        ("<s>", t.token_to_id("<s>")), ("</s>", t.token_to_id("</s>"))])
    made["mixed"] = t
    return made


def sorted_alphabet():
    """The letter of each byte, by byte."""
    direct = list(range(0x21, 0x7F)) + list(range(0xA1, 0xAD)) + list(range(0xAE, 0x100))
    letters, n = [], 0
    for b in range(256):
        letters.append(chr(b) if b in direct else chr(256 + n))
        n += b not in direct
    return letters


def write(name, value, **kw):
    with open(os.path.join(HERE, name), "w", encoding="utf-8") as f:
        json.dump(value, f, ensure_ascii=True, **kw)
        f.write("\n")


def golden(t):
    out = []
    for text in texts():
        plain, special = t.encode(text, add_special_tokens=False).ids, t.encode(text).ids
        case = {"ids": plain}
        if special != plain:
            case["special"] = special
        out.append(case)
        decoded = t.decode(plain, skip_special_tokens=True)
        case["decoded"] = decoded
    return out


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--smollm2-texts", help="JSON list of {text, ids} of the real SmolLM2 tokenizer, to be copied")
    ap.add_argument("--check", metavar="FOLDER")
    ap.add_argument("--corpus", action="store_true")
    ap.add_argument("--newer", action="store_true")
    args = ap.parse_args()
    if args.corpus:
        return write_corpus()
    if args.newer:
        return print_newer()
    if args.check:
        bad = 0
        for name in ("gpt2", "smollm2", "llama3", "qwen2", "mixed"):
            t = Tokenizer.from_file(os.path.join(args.check, name + ".json"))
            for text, case in zip(texts(), json.load(open(os.path.join(HERE, name + ".ids.json")))["cases"]):
                same = t.encode(text, add_special_tokens=False).ids == case["ids"]
                same = same and t.encode(text).ids == case.get("special", case["ids"])
                if not same:
                    print(name, repr(text))
                bad += not same
        print("differing:", bad)
        return bad != 0
    os.makedirs(HERE, exist_ok=True)
    write("texts.json", texts(), indent=0)
    for name, t in make_all().items():
        path = os.path.join(HERE, name + ".json")
        t.save(path, pretty=False)
        again = Tokenizer.from_file(path)
        write(name + ".ids.json", {"tokenizers": tokenizers.__version__, "cases": golden(again)}, separators=(",", ":"))
    if args.smollm2_texts:
        cases = json.load(open(args.smollm2_texts, encoding="utf-8"))
        write("smollm2_texts.json", cases, separators=(",", ":"))
    return 0


def write_corpus():
    """Seeds for tests/fuzz_tokenizer.c: tiny vocabularies, one file for each part that the readers know."""
    folder = os.path.join(os.path.dirname(HERE), "..", "data", "fuzz", "tokenizer")
    os.makedirs(folder, exist_ok=True)
    words = ["<s>", "H", "e", "l", "o", "a", "b", "Ġ", "1", "2", "ll", "aa", "ab", "aaaa", "Ã", "¶"]
    vocab = {w: i for i, w in enumerate(words)}
    base = {"normalizer": None, "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False}, "decoder": {"type": "ByteLevel"},
            "added_tokens": [{"id": 0, "content": "<s>", "special": True}], "post_processor": None,
            "model": {"type": "BPE", "vocab": vocab, "merges": ["l l", "a a", "a b", "aa aa"]}}
    byte = {"type": "ByteLevel", "add_prefix_space": True, "use_regex": False}
    regex = lambda p: {"type": "Split", "pattern": {"Regex": p}, "behavior": "Isolated", "invert": False}
    seeds = {
        "plain": {},
        "llama3": {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [regex(LLAMA3), byte]},
                   "model": dict(base["model"], ignore_merges=True, merges=[["l", "l"], ["a", "a"]]),
                   "post_processor": {"type": "TemplateProcessing",
                                      "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
                                      "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}}}},
        "patterns": {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            regex(r"(?<=\d)[^\d]|[^\S\n]{2,4}|(?>a|ab)++|\p{Lu}?\P{Ll}*?$|^\x{41}|(?i:'s)"), {"type": "Digits", "individual_digits": False},
            {"type": "Split", "pattern": {"String": "ab"}, "behavior": "Removed", "invert": True}, byte]}},
        "added": {"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}]}, "added_tokens": [
            {"id": 0, "content": "<s>", "special": True, "rstrip": True, "lstrip": True, "single_word": False, "normalized": False},
            {"id": 16, "content": "<|x|>", "special": False, "single_word": True, "normalized": False},
            {"id": 17, "content": "e\u0301", "special": False, "normalized": True}]},
        "unk": {"model": dict(base["model"], unk_token="<s>", fuse_unk=True, dropout=None, byte_fallback=False)},
        "refused": {"normalizer": {"type": "Nmt"}},
    }
    for name, parts in seeds.items():
        with open(os.path.join(folder, name + ".json"), "w", encoding="utf-8") as f:
            json.dump(dict(base, **parts), f, ensure_ascii=False)

    def text(s):
        return struct.pack("<Q", len(s.encode())) + s.encode()

    def key(name, kind, value):
        return text(name) + struct.pack("<I", kind) + value

    def texts_of(values):
        return struct.pack("<IQ", 8, len(values)) + b"".join(map(text, values))

    for pre in ("gpt-2", "smollm", "llama-bpe", "qwen2"):
        keys = [key("tokenizer.ggml.model", 8, text("gpt2")), key("tokenizer.ggml.pre", 8, text(pre)),
                key("tokenizer.ggml.tokens", 9, texts_of(words)), key("tokenizer.ggml.merges", 9, texts_of(base["model"]["merges"])),
                key("tokenizer.ggml.token_type", 9, struct.pack("<IQ16i", 5, 16, 3, *[1] * 14, 4)),
                key("tokenizer.ggml.bos_token_id", 4, struct.pack("<I", 0)), key("tokenizer.ggml.add_bos_token", 7, b"\1")]
        data = b"GGUF" + struct.pack("<IQQ", 3, 0, len(keys)) + b"".join(keys)
        with open(os.path.join(folder, pre + ".gguf"), "wb") as f:
            f.write(data + bytes(-len(data) % 32))
    return 0


def print_newer():
    """Code points whose category the reference's patterns know and Unicode 14 (PCRE2 10.42) does not."""
    if unicodedata.unidata_version != "14.0.0":
        sys.exit("needs a Python with Unicode 14.0.0 tables (3.11), not " + unicodedata.unidata_version)
    cps = [c for c in range(0x110000) if not 0xD800 <= c < 0xE000]
    everything = "".join(map(chr, cps))
    rows = []
    for category in "Lu Ll Lt Lm Lo Mn Mc Me Nd Nl No Pc Pd Ps Pe Pi Pf Po Sm Sc Sk So Zs Zl Zp Cc Cf Co".split():
        outside = set()
        for _, (a, b) in pre_tokenizers.Split(Regex(r"\p{%s}+" % category), "removed").pre_tokenize_str(everything):
            outside.update(range(a, b))
        new = [c for i, c in enumerate(cps) if i not in outside and unicodedata.category(chr(c)) != category]
        for c in new:
            if rows and rows[-1][2] == category and rows[-1][1] == c - 1:
                rows[-1][1] = c
            else:
                rows.append([c, c, category])
    for row in sorted(rows):
        print('{0x%04x, 0x%04x, "%s"},' % tuple(row))
    return 0


if __name__ == "__main__":
    sys.exit(main())
