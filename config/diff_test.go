package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestDiff: keys that differ are named in the table's order, those that a bridge can take over as such, and no secret is shown.
func TestDiff(t *testing.T) {
	secret := filepath.Join(t.TempDir(), "token")
	load := func(token string, more map[string]string) *Config {
		t.Helper()
		if err := os.WriteFile(secret, []byte(token), 0o600); err != nil {
			t.Fatal(err)
		}
		set := map[string]string{"cluster": "shop", "node": "a", "postgres.dsn": "postgres://u:first@/app", "nats.token_file": secret,
			"topology.nodes": "a=nats://127.0.0.1:4222,b=nats://127.0.0.1:4223"}
		for k, v := range more {
			set[k] = v
		}
		cfg, err := Load("", set)
		if err != nil {
			t.Fatal(err)
		}
		return cfg
	}
	from := load("hush", nil)
	if d := Diff(from, load("hush", nil)); d != nil {
		t.Errorf("equal configurations differ in %v", d)
	}
	to := load("hushed", map[string]string{"apply.rate": "1MiB", "tables": "app.*", "postgres.dsn": "postgres://u:second@/app",
		"conflict.foreign_keys": "*.*.*=restore", "nats.links": "b.url=nats://10.0.0.1:4222"})
	var got []string
	for _, d := range Diff(from, to) {
		text := d.String()
		if d.Live {
			text += " (live)"
		}
		got = append(got, text)
	}
	want := `tables: *.* -> app.*
postgres.dsn: postgres://u:xxxxx@/app -> postgres://u:xxxxx@/app
nats.token_file: xxxxx -> xxxxx
nats.links: - -> b.url=nats://10.0.0.1:4222
apply.rate: 0 -> 1MiB (live)
conflict.foreign_keys: - -> *.*.*=restore`
	if text := strings.Join(got, "\n"); text != want {
		t.Errorf("they differ in\n%s\nwant\n%s", text, want)
	}
}
