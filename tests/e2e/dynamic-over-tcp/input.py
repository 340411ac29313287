"""Rows of very uneven length."""
import json

for i in range(200):
    print(json.dumps({"prompt": "x" * (1 + i % 11), "max_tokens": 100 if i % 20 == 0 else 2, "ignore_eos": True}))
