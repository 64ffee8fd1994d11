import json

import mistune

with open("/request.json") as file:
    request = json.load(file)
with open("/result.json", "w") as file:
    json.dump({"body": mistune.html(request["body"]), "headers": {"Content-Type": "text/html; charset=utf-8"}}, file)
