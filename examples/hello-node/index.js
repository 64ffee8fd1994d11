// Greets whoever the request's body or query names.
const { readFileSync, writeFileSync } = require('node:fs');

const request = JSON.parse(readFileSync('/request.json', 'utf8'));
const name = request.body?.name ?? request.query?.name ?? 'World';

const result = {
  message: `Hello, ${name}!`,
  timestamp: new Date().toISOString(),
};
console.log(`greeting ${name}`); // goes to the function's logs, never into the answer

writeFileSync('/result.json', JSON.stringify({ body: result }));
