"""Bad rows first, then many that take long."""
import json

for i in range(50):
    print("bad")
for i in range(3000):
    print(json.dumps({"prompt": "long", "max_tokens": 100, "ignore_eos": True}))
