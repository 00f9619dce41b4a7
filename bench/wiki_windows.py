#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Windows of token ids from Wikipedia articles, for calibration: plain text of the 106 articles (CC BY-SA, so not stored here) that the
PyPI package gensim 4.3.3 carries as test data, tokenized by the model's tokenizer, cut into windows and shuffled. No 12 tokens in a row are in --unlike.

usage: wiki_windows.py GENSIM.whl TOKENIZER.json OUT.safetensors [--skip 16] [--n N] [--mix FILE] [--unlike FILE] [--seed 7]

GENSIM.whl: `pip download --no-deps gensim==4.3.3`. With --mix the windows of FILE and these alternate (--order alternate) or are shuffled
together (--order shuffle). The first --skip windows are left out (they validate). Needs mwparserfromhell, tokenizers, numpy, safetensors."""
import argparse, bz2, re, zipfile
import xml.etree.ElementTree as ET

import mwparserfromhell
import numpy as np
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer

DUMP = "gensim/test/test_data/enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
LENGTH, GRAM = 512, 12


def articles(wheel):
    xml = bz2.decompress(zipfile.ZipFile(wheel).read(DUMP)).decode("utf-8", "replace")
    for page in re.findall(r"<page>.*?</page>", xml, re.S):
        e = ET.fromstring(page)
        if e.findtext("ns") == "0" and e.find("redirect") is None:
            yield e.find("revision").findtext("text") or ""


def plain(markup):
    """Paragraphs: no markup, references, tables, lists or headings."""
    markup = re.sub(r"<!--.*?-->", "", markup, flags=re.S)
    markup = re.sub(r"<ref[^>]*/>", "", markup)
    markup = re.sub(r"<ref.*?</ref>", "", markup, flags=re.S)
    markup = re.sub(r"<(math|gallery|timeline|source|syntaxhighlight|pre|table)[^>]*>.*?</\1>", "", markup, flags=re.S)
    markup = re.sub(r"\{\|.*?\|\}", "", markup, flags=re.S)
    code = mwparserfromhell.parse(markup)
    for link in code.filter_wikilinks():
        if re.match(r"\s*(File|Image|Category)\s*:", str(link.title), re.I):
            try:
                code.remove(link)
            except ValueError:
                pass  # inside of one that is gone
    lines = (line.strip() for line in code.strip_code(normalize=True, collapse=True).split("\n"))
    return "\n".join(line for line in lines if len(line) >= 80 and line[0] not in "*#|!:;")


def main():
    p = argparse.ArgumentParser(usage=__doc__.split("usage: ")[1].split("\n")[0])
    for name in ("wheel", "tokenizer", "out"): p.add_argument(name)
    p.add_argument("--skip", type=int, default=16)
    p.add_argument("--n", type=int)
    p.add_argument("--seed", type=int, default=7)
    p.add_argument("--mix")
    p.add_argument("--order", choices=("alternate", "shuffle"), default="alternate")
    p.add_argument("--unlike")
    a = p.parse_args()
    tokenizer, windows, grams = Tokenizer.from_file(a.tokenizer), [], set()
    if a.unlike:
        for row in load_file(a.unlike)["ids"].tolist(): grams.update(tuple(row[k:k + GRAM]) for k in range(len(row) - GRAM + 1))
    for markup in articles(a.wheel):
        text = plain(markup)
        if len(text) < 2000: continue
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        if any(tuple(ids[k:k + GRAM]) in grams for k in range(len(ids) - GRAM + 1)): raise SystemExit("an article is in --unlike")
        windows += [ids[k:k + LENGTH] for k in range(0, len(ids) - LENGTH + 1, LENGTH)]
    windows = np.array(windows, np.int32)
    windows = windows[np.random.default_rng(a.seed).permutation(len(windows))][a.skip:][:a.n]
    if a.mix:
        other = load_file(a.mix)["ids"]
        if a.order == "shuffle":
            windows = np.concatenate([other, windows])
            windows = windows[np.random.default_rng(3).permutation(len(windows))]
        else:
            n = min(len(other), len(windows))
            windows = np.stack([other[:n], windows[:n]], 1).reshape(2 * n, LENGTH)
    save_file({"ids": np.ascontiguousarray(windows)}, a.out)
    print(a.out, windows.shape)


main()
