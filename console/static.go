package console

import (
	"bytes"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"net/http"
	"path"
	"time"
)

//go:embed static
var static embed.FS

// kinds are the types of files, whatever the machine's own table of them says.
var kinds = map[string]string{".html": "text/html; charset=utf-8", ".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".svg": "image/svg+xml"}

// file is one that browsers load. None holds anything of a node, so that it needs no session.
type file struct {
	content   []byte
	kind, tag string
}

// files are the page and what it loads, by their path below Prefix; the page's is empty.
func files() map[string]file {
	all := map[string]file{}
	entries, err := static.ReadDir("static")
	if err != nil {
		panic("console: " + err.Error()) // they are part of the program
	}
	for _, e := range entries {
		content, err := static.ReadFile("static/" + e.Name())
		if err != nil {
			panic("console: " + err.Error())
		}
		hash := sha256.Sum256(content)
		name := e.Name()
		if name == "index.html" {
			name = "{$}"
		}
		all[name] = file{content, kinds[path.Ext(e.Name())], `"` + hex.EncodeToString(hash[:8]) + `"`}
	}
	return all
}

// ServeHTTP lets browsers keep the file as long as it is the same.
func (f file) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", f.kind)
	w.Header().Set("Cache-Control", "no-cache")
	w.Header().Set("ETag", f.tag)
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(f.content))
}
