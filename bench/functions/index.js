// What a small Node.js function does: read the request as JSON, write a result as JSON.
const fs = require("node:fs");

const request = JSON.parse(fs.readFileSync("/request.json", "utf8"));
fs.writeFileSync("/result.json", JSON.stringify({ body: { hello: request.body.name } }));
