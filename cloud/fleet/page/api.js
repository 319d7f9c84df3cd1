// Asking the hub. The token is in this tab's memory alone, and travels in a header:
// there is no cookie that another page could use.

export const token = {
  get: () => sessionStorage.getItem("token") || "",
  set: (t) => { if (t) sessionStorage.setItem("token", t); else sessionStorage.removeItem("token"); },
};

// Refused is an answer that is not what was asked for.
export class Refused extends Error {
  constructor(code, message) {
    super(message);
    this.code = code;
  }
}

export async function ask(path, headers, signal) {
  const answer = await fetch(path, { headers: { ...headers, Authorization: "Bearer " + token.get() }, signal, cache: "no-store", credentials: "omit", redirect: "error" });
  if (answer.ok || answer.status === 304) return answer;
  throw new Refused(answer.status, (await answer.text()).trim() || answer.statusText);
}

export async function api(path, { tag, signal }) {
  const late = AbortSignal.timeout(30000);
  const answer = await ask(path, tag ? { "If-None-Match": tag } : {}, AbortSignal.any([signal, late]));
  if (answer.status === 304) return {};
  return { document: await answer.json(), tag: answer.headers.get("ETag") || "" };
}
