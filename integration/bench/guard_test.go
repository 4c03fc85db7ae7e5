package main

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestBrokenGuardIsNoticed: a bridge whose guard lets every row through overwrites newer rows, and the comparison of the
// contested line sees it. With the guard as it is the same line has a time: the measured build asks it.
func TestBrokenGuardIsNoticed(t *testing.T) {
	l := lineNamed(t, "contested")
	for _, c := range []struct {
		name   string
		broken bool
	}{{"whole", false}, {"broken", true}} {
		t.Run(c.name, func(t *testing.T) {
			b := testBench(t)
			b.opts.out = filepath.Join(t.TempDir(), "bench.json")
			b.opts.binary = buildBridge(t, c.broken)
			s := b.measure(t.Context(), l, pgbridgeName)
			noticed := s.Seconds == 0 && strings.Contains(s.Error, errDifferent.Error())
			if c.broken && !noticed {
				t.Errorf("a guard that lets everything through is not noticed: %+v", s)
			}
			if !c.broken && (s.Error != "" || s.Seconds <= 0) {
				t.Errorf("the guard as it is: %+v", s)
			}
		})
	}
}

// buildBridge builds pgbridge as cluster.Binary does, with a guard that is always true if broken.
func buildBridge(t *testing.T, broken bool) string {
	t.Helper()
	binary := filepath.Join(t.TempDir(), "pgbridge")
	args := []string{"build", "-o", binary}
	if broken {
		args = append(args, "-overlay", breakGuard(t))
	}
	cmd := exec.Command("go", append(args, "github.com/pgbridge/pgbridge/cmd/pgbridge")...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", cmd, err, out)
	}
	return binary
}

// breakGuard writes an overlay for go build in which the guard's condition is always true.
func breakGuard(t *testing.T) string {
	t.Helper()
	source, err := filepath.Abs(filepath.Join("..", "..", "apply", "guard.go"))
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(source)
	if err != nil {
		t.Fatal(err)
	}
	const head = "func (g *guard) condition(first int, otherwise string) string {"
	const broken = head + "\n\treturn \"(true OR \" + g.whole(first, otherwise) + \")\"\n}\n\n" +
		"func (g *guard) whole(first int, otherwise string) string {"
	if strings.Count(string(text), head) != 1 {
		t.Fatalf("%s does not hold %q once: this test must learn how the guard is made now", source, head)
	}
	changed := strings.Replace(string(text), head, broken, 1)
	dir := t.TempDir()
	file := filepath.Join(dir, "guard.go")
	overlay, err := json.Marshal(map[string]map[string]string{"Replace": {source: file}})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(changed), 0o644); err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(name, overlay, 0o644); err != nil {
		t.Fatal(err)
	}
	return name
}
