// A few-shot conversation with `ttt-router serve` by OpenAI's client for JavaScript, whole and streamed.
//
//     npm install --no-package-lock --prefix examples/node
//     node examples/node/few_shot.mjs [http://127.0.0.1:8000/v1 [MODEL]]
//
// Prints one line of JSON for each: the answer, the arm that gave it, and its episode. Then corrects the first answer,
// and asks for what is refused.

import OpenAI from "openai";

const [baseURL = "http://127.0.0.1:8000/v1", model = "auto"] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey: process.env.TTT_ROUTER_API_KEY || "none", maxRetries: 0 });

const pairs = [
  ["3 March 2021", "2021-03-03"],
  ["12 May 1999", "1999-05-12"],
];
const messages = [
  { role: "system", content: "Write the date the ISO way." },
  ...pairs.flatMap(([user, assistant]) => [
    { role: "user", content: user },
    { role: "assistant", content: assistant },
  ]),
  { role: "user", content: "7 July 2007" },
];
const asked = { model, messages, max_tokens: 20, ttt_router: { when: "never" } };

const { data: whole, response } = await client.chat.completions.create(asked).withResponse();
console.log(
  JSON.stringify({
    text: whole.choices[0].message.content,
    arm: whole.ttt_router.arm,
    episode: whole.ttt_router.episode_id,
    header: response.headers.get("x-ttt-router-episode"),
    usage: whole.usage,
  }),
);

let text = "";
let account = {};
let usage = null;
const stream = await client.chat.completions.create({
  ...asked,
  stream: true,
  stream_options: { include_usage: true },
});
for await (const chunk of stream) {
  text += chunk.choices[0]?.delta?.content ?? "";
  account = { ...account, ...chunk.ttt_router };
  usage = chunk.usage ?? usage;
}
console.log(JSON.stringify({ text, arm: account.arm, episode: account.episode_id, usage }));

const corrected = await client.chat.completions.create({
  ...asked,
  messages: [
    ...messages,
    { role: "assistant", content: whole.choices[0].message.content },
    { role: "user", content: "no, it should be 2007-07-07" },
  ],
});
console.log(
  JSON.stringify({
    text: corrected.choices[0].message.content,
    episode: corrected.ttt_router.episode_id,
    demonstrations: corrected.ttt_router.n_demonstrations,
  }),
);

try {
  await client.chat.completions.create({ ...asked, n: 2 });
} catch (error) {
  console.log(JSON.stringify({ refused: error.status, param: error.param, name: error.constructor.name }));
}
