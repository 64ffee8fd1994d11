const fs = require("node:fs");
const { marked } = require("marked");

const request = JSON.parse(fs.readFileSync("/request.json", "utf8"));
const body = marked.parse(request.body);
fs.writeFileSync("/result.json", JSON.stringify({ body, headers: { "Content-Type": "text/html; charset=utf-8" } }));
