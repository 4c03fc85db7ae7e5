package main

import (
	"testing"

	"github.com/pgbridge/pgbridge/config"
)

// TestKeys: what is made is told, and a directory must be named.
func TestKeys(t *testing.T) {
	b := backend{makeKeys: func(cfg *config.Config, dir string, tell func(string)) error {
		tell("makes " + dir + "/" + cfg.Node)
		return nil
	}}
	file := writeConfig(t)
	if got := call(t, b, "keys", "--config", file, "--out", "keys"); got.code != exitDone || got.out != "the keys of 2 nodes are in keys\n" || got.err != "makes keys/a\n" {
		t.Errorf("%+v", got)
	}
	if got := call(t, b, "keys", "--config", file); got.code != exitUsage {
		t.Errorf("without a directory: %+v", got)
	}
}
