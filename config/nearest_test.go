package config

import "testing"

func TestEditDistance(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want int
	}{
		{"", "", 0}, {"", "abc", 3}, {"abc", "", 3}, {"node", "node", 0}, {"nodes", "node", 1}, {"dns", "dsn", 1},
		{"kitten", "sitting", 3}, {"ab", "ba", 1}, {"cluster", "clsuter", 1},
	} {
		if got := editDistance(c.a, c.b); got != c.want {
			t.Errorf("editDistance(%q, %q) = %d; want %d", c.a, c.b, got, c.want)
		}
	}
}

func TestNearestKey(t *testing.T) {
	for name, want := range map[string]string{
		"clutser":               "cluster",
		"Cluster":               "cluster",
		"nodes":                 "node",
		"dsn":                   "postgres.dsn",
		"postgres.dns":          "postgres.dsn",
		"postgres.url":          "postgres.dsn",
		"nats.listen":           "nats.embedded.listen",
		"listen":                "nats.embedded.listen",
		"embedded.listen":       "nats.embedded.listen",
		"topology.node":         "topology.nodes",
		"log.levle":             "log.level",
		"logging.level":         "log.level",
		"apply.batch_size":      "apply.batch_bytes",
		"nats.embedded.payload": "nats.embedded.max_payload",
	} {
		if got := nearest(name, names()); got != want {
			t.Errorf("nearest(%q) = %q; want %q", name, got, want)
		}
	}
}
