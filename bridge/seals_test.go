package bridge

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pgbridge/pgbridge/config"
	"github.com/pgbridge/pgbridge/origin"
)

func residentConfig(node, dir string, residency ...string) *config.Config {
	c := &config.Config{Cluster: "x", Node: node}
	c.Topology.Nodes = map[string]string{"a": "nats://127.0.0.1:1", "b": "nats://127.0.0.1:2", "c": "nats://127.0.0.1:3"}
	c.Topology.Residency = residency
	c.NATS.KeysDir = dir
	return c
}

// TestGroupsOfTables: of each table that some line is for, also where several are.
func TestGroupsOfTables(t *testing.T) {
	r := residencyOf(residentConfig("a", "", "crm.*=b a", "crm.eu_*=a b c", "crm.*_log=b c", "shop.x=c a", "shop.y=a c"))
	if got := fmt.Sprint(r.groups()); got != "[[a b] [a b c] [b] [b c] [a] [a c] [c]]" {
		t.Errorf("groups %s", got)
	}
	for table, want := range map[string]string{"crm.p": "a b", "crm.eu_p": "a b", "crm.eu_log": "b", "shop.x": "a c", "shop.z": ""} {
		schema, name, _ := strings.Cut(table, ".")
		if got := r.group(schema, name); got != want {
			t.Errorf("%s is of %q, want %q", table, got, want)
		}
	}
}

// TestSealKeys: each group's nodes have its key, and nobody else; made again it is the same; what is wrong is named with the mend.
func TestSealKeys(t *testing.T) {
	dir := t.TempDir()
	cfg := func(node string, residency ...string) *config.Config {
		return residentConfig(node, filepath.Join(dir, node), residency...)
	}
	quiet := func(string) {}
	if err := MakeKeys(cfg("a", "crm.*=a b"), dir, quiet); err != nil {
		t.Fatal(err)
	}
	first, err := os.ReadFile(filepath.Join(dir, "b", "rows-a+b.key"))
	if err != nil {
		t.Fatal(err)
	}
	if err := MakeKeys(cfg("a", "crm.*=a b", "shop.x=b c"), dir, quiet); err != nil {
		t.Fatal(err)
	}
	files, _ := filepath.Glob(filepath.Join(dir, "*", sealPattern))
	for i := range files {
		files[i] = strings.TrimPrefix(files[i], dir+"/")
	}
	if got := strings.Join(files, " "); got != "a/rows-a+b.key b/rows-a+b.key b/rows-b+c.key b/rows-b.key c/rows-b+c.key" {
		t.Errorf("keys are %s", got)
	}
	if again, _ := os.ReadFile(filepath.Join(dir, "a", "rows-a+b.key")); string(again) != string(first) {
		t.Error("a key was made anew")
	}
	own := origin.Origin{Node: "b", Epoch: 1}
	s, err := readSeals(cfg("b", "crm.*=a b", "shop.x=b c"), own)
	if err != nil {
		t.Fatal(err)
	}
	if by := s.byTable(); by("crm", "p") == nil || by("shop", "x") == nil || by("crm", "p") == by("shop", "x") || by("shop", "y") != nil {
		t.Errorf("node b has %+v, %v", s, err)
	}
	if s, err := readSeals(cfg("c", "crm.*=a b"), origin.Origin{Node: "c", Epoch: 1}); err != nil || s.byTable() != nil || s.open == nil {
		t.Errorf("node c has %+v, %v", s, err)
	}
	if s, err := readSeals(residentConfig("b", "", "crm.*=a b"), own); err != nil || s.byTable() != nil {
		t.Errorf("without keys node b has %+v, %v", s, err)
	}
	for what, x := range map[string]struct{ text, want string }{
		"none":    {"", "has no key"},
		"damaged": {"abc\n", "has a line that is not 32 bytes in base64"},
	} {
		if err := os.WriteFile(filepath.Join(dir, "b", "rows-a+b.key"), []byte(x.text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := readSeals(cfg("b", "crm.*=a b"), own); err == nil || !permanent(err) || !strings.Contains(err.Error(), x.want) || !strings.Contains(err.Error(), "run pgbridge keys") {
			t.Errorf("%s: %v", what, err)
		}
	}
	if err := MakeKeys(cfg("a", "crm.*=a b"), dir, quiet); err == nil || !strings.Contains(err.Error(), "rows-a+b.key is not the same for the nodes a, b") {
		t.Errorf("keys that differ: %v", err)
	}
}
