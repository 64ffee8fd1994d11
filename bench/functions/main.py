"""What a small Python function does: read the request as JSON, write a result as JSON."""

import json

with open("/request.json", encoding="utf-8") as file:
    request = json.load(file)
with open("/result.json", "w", encoding="utf-8") as file:
    json.dump({"body": {"hello": request["body"]["name"]}}, file)
