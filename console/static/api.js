// What is asked of the bridge.

class Refused extends Error {
	constructor(status, text) {
		super(text);
		this.status = status;
	}
}

async function call(path, options) {
	let answer;
	try {
		answer = await fetch(path, { credentials: "same-origin", cache: "no-store", ...options });
	} catch (error) {
		if (error.name === "AbortError") throw error;
		throw new Refused(0, "The bridge does not answer; it may be stopped, or the network is down. The page tries again by itself.");
	}
	if (answer.ok) return answer;
	let text = answer.statusText;
	try {
		text = (await answer.json()).error;
	} catch {
		// A proxy may answer in the place of the bridge, in words of its own.
	}
	if (answer.status === 401 && path !== "sign-in") document.dispatchEvent(new Event("signed-out"));
	throw new Refused(answer.status, text);
}

const posted = (body, signal) => ({ method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), signal });

export async function get(path, fields, signal) {
	const query = new URLSearchParams(Object.entries(fields ?? {}).filter(([, value]) => value));
	return (await call("api/" + path + (query.size ? "?" + query : ""), { signal })).json();
}

export async function post(path, body) {
	return (await call("api/" + path, posted(body))).json();
}

export async function signIn(token) {
	return (await call("sign-in", posted({ token }))).json();
}

export async function signOut() {
	await call("sign-out", posted({}));
}

// lines posts, and calls each with every line of the answer as it comes.
export async function lines(path, body, signal, each) {
	const reader = (await call("api/" + path, posted(body, signal))).body.pipeThrough(new TextDecoderStream()).getReader();
	let rest = "";
	for (;;) {
		const { value, done } = await reader.read();
		if (done) return;
		const parts = (rest + value).split("\n");
		rest = parts.pop();
		for (const line of parts) each(JSON.parse(line));
	}
}
