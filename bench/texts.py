"""Texts of many kinds, for everything that has to hold whatever the text is."""

import sysconfig
from pathlib import Path
from pydoc_data.topics import topics

KINDS = {
    "english": 'The quick brown fox doesn\'t care: it\'s late. "Well," she said, "un-til tomorrow!"',
    "german": "Die Würde des Menschen ist unantastbar. Donaudampfschifffahrtskapitän, größer, Straße.",
    "russian": "Все счастливые семьи похожи друг на друга, каждая несчастливая семья несчастлива по-своему.",
    "chinese": "今天天气很好,我们去公园散步吧。人工智能正在改变世界:语言模型、翻译与对话。",
    "arabic and hindi": "مرحبا بالعالم، كيف حالك اليوم؟ नमस्ते दुनिया, आज आप कैसे हैं?",
    "emoji": "ice cream 🍦🍨, family 👩‍👩‍👧‍👦, flags 🇩🇪🇯🇵, skin 👍🏽👍🏿, hearts ❤️💔, keycap 3️⃣ and ✨done✨",
    "code": "def add(first: int, second=0) -> int:\n    return first+second  # += 1\n\n\nprint(add(12, 3_456))\n\tx=1",
    "digits": "3.14159265358979 1,000,000 2026-11-21T03:36:13Z 0x1F4A9 192.168.0.1 12345678901234567890 1e-05 007",
    "mixed newlines": "one\ntwo\r\nthree\n\n\nfour\r\r\n  five \n \n\tsix\n\n    seven\n",
    "no spaces": "thisisalongsentencewithoutanyspacesthatiscutverydifferentlyhttps://example.com/a?b=c&d=%20e#f",
    "combining": "e\u0301 n\u0303 a\u0308o\u0323\u0302 Z\u0351\u036blgo \u1112\u1161\u11ab cafe\u0301 \ufb01ne \u212b",
    "rare bytes": "\u0000\u0001 \u200b zero\u200dwidth \ufeffbom \u00a0nbsp \U0001f9ff\U00013080\u2fff \ue000",
    "spaces": "   three    four\t\ttabs \u3000ideographic  end   ",
    "special": "<|im_start|>user <s> </s> <0x0A> ▁under Ġg <|endoftext|> [INST] <tool_call>",
}


def prose(characters: int) -> list[str]:
    """Rows of Python's own documentation, about 1,500 characters each: English with code, on every machine."""
    text = "\n".join(topics[topic] for topic in sorted(topics))[:characters]
    return [text[start : start + 1500] for start in range(0, len(text), 1500)]


def code(characters: int) -> list[str]:
    """Rows of the standard library's own source."""
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    text = "".join(file.read_text(encoding="utf-8", errors="replace") for file in files[:60])[:characters]
    return [text[start : start + 1500] for start in range(0, len(text), 1500)]
