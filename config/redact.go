package config

import (
	"cmp"
	"maps"
	"net/url"
	"regexp"
	"strings"
)

// hidden stands where a secret was.
const hidden = "xxxxx"

// Redacted returns a copy of c that can be shown to anybody: no token, no password in the connection
// string or in a URL. It shares nothing that would be changed with c.
func (c *Config) Redacted() *Config {
	r := *c
	r.Postgres.DSN = redactDSN(c.Postgres.DSN)
	r.NATS.URL = redactURL(c.NATS.URL)
	r.NATS.Token = hide(c.NATS.Token)
	r.HTTP.ViewerToken, r.HTTP.OperatorToken = hide(c.HTTP.ViewerToken), hide(c.HTTP.OperatorToken)
	r.NATS.Links = maps.Clone(c.NATS.Links)
	for name, a := range r.NATS.Links {
		a.URL = redactURL(a.URL)
		a.Password, a.Token = hide(a.Password), hide(a.Token)
		r.NATS.Links[name] = a
	}
	r.Topology.Nodes = maps.Clone(c.Topology.Nodes)
	for name, text := range r.Topology.Nodes {
		r.Topology.Nodes[name] = redactURL(text)
	}
	return &r
}

// hide hides a secret, if there is one.
func hide(secret string) string {
	if secret == "" {
		return ""
	}
	return hidden
}

// String lists every key with its value, one per line, redacted.
func (c *Config) String() string {
	var b strings.Builder
	for _, s := range c.Settings() {
		b.WriteString(s.Key + ": " + s.Value + "\n")
	}
	return b.String()
}

// Setting is a key with its value, as it would be written and without secrets.
type Setting struct {
	Key   string `json:"key"`
	Value string `json:"value"`
	// Default is what counts where nothing is written, in words where it depends on other keys; empty: there is none.
	Default string `json:"default"`
	// Set says that the value is another one.
	Set  bool   `json:"set"`
	Live bool   `json:"live"` // a reload changes it while the bridge runs
	Why  string `json:"why"`
}

// Settings lists every key with its value, redacted, in the order of the documentation.
func (c *Config) Settings() []Setting {
	r, plain := c.Redacted(), new(Config)
	var all []Setting
	for _, k := range keys() {
		_ = decode(k.field(plain), k.initial) // TestExampleHoldsTheDefaults reads every one; "" of a key without default is its zero
		all = append(all, Setting{Key: k.name, Value: encode(k.field(r)), Default: cmp.Or(k.initial, k.derived), Live: k.live, Why: k.why,
			Set: k.derived == "" && encode(k.field(r)) != encode(k.field(plain))})
	}
	return all
}

// redactURL hides the passwords of a list of URLs.
func redactURL(list string) string {
	all := splitURLs(list)
	for i := range all {
		all[i] = redactOne(all[i])
	}
	return strings.Join(all, ",")
}

// redactOne hides the password of a URL, or its user if there is no password: NATS takes that for a
// token. A URL that cannot be read is hidden from its scheme to its last @.
func redactOne(text string) string {
	u, err := url.Parse(text)
	if err != nil || u.User == nil {
		if at := strings.LastIndexByte(text, '@'); at >= 0 {
			scheme, _, _ := strings.Cut(text[:at], "://")
			return scheme + "://" + hidden + text[at:]
		}
		return text
	}
	if _, has := u.User.Password(); has {
		u.User = url.UserPassword(u.User.Username(), hidden)
	} else {
		u.User = url.User(hidden)
	}
	return u.String()
}

// secretWord finds the secrets in a connection string of the form host=... password=...; a value is
// quoted with ' and \ quotes within (PostgreSQL, "Connection Strings").
var secretWord = regexp.MustCompile(`(?i)\b(password|sslpassword)(\s*=\s*)('(\\.|[^'\\])*'?|(\\.|[^\s\\])*)`)

// redactDSN hides the passwords of a connection string in either form. What cannot be read is hidden
// altogether.
func redactDSN(dsn string) string {
	if !isURL(dsn, "postgres", "postgresql") {
		if !strings.Contains(dsn, "=") && dsn != "" {
			return hidden
		}
		return secretWord.ReplaceAllString(dsn, "${1}${2}"+hidden)
	}
	u, err := url.Parse(dsn)
	if err != nil {
		return hidden
	}
	if _, has := u.User.Password(); has {
		u.User = url.UserPassword(u.User.Username(), hidden)
	}
	query := u.Query()
	for _, name := range []string{"password", "sslpassword"} {
		if query.Has(name) {
			query.Set(name, hidden)
			u.RawQuery = query.Encode()
		}
	}
	return u.String()
}
