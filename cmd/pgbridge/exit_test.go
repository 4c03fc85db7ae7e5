package main

import (
	"errors"
	"fmt"
	"os/exec"
	"runtime/debug"
	"strings"
	"testing"

	"github.com/pgbridge/pgbridge/config"
)

// coded asks for an exit code, as the errors of other packages do.
type coded struct{ code int }

func (coded) Error() string   { return "coded" }
func (c coded) ExitCode() int { return c.code }

func TestExitCode(t *testing.T) {
	child := exec.Command("sh", "-c", "exit 4").Run()
	for _, c := range []struct {
		name string
		err  error
		want int
	}{
		{"nothing", nil, 0},
		{"an error", errors.New("x"), 1},
		{"usage", usagef("x"), 2},
		{"configuration", &config.Error{}, 2},
		{"wrapped", fmt.Errorf("a: %w", fmt.Errorf("b: %w", coded{4})), 4},
		{"joined", errors.Join(errors.New("x"), coded{3}), 3},
		{"a code that has no meaning", coded{77}, 1},
		{"success is no error", coded{0}, 1},
		{"a program that we ran", fmt.Errorf("run initdb: %w", child), 1},
	} {
		if got := exitCode(c.err); got != c.want {
			t.Errorf("%s: exit code %d; want %d", c.name, got, c.want)
		}
	}
}

func TestVersion(t *testing.T) {
	build := &debug.BuildInfo{Main: debug.Module{Version: "v1.2.3"}, Settings: []debug.BuildSetting{{Key: "vcs.revision", Value: "abc"}}}
	for _, c := range []struct {
		linked string
		build  *debug.BuildInfo
		want   string
	}{
		{"", nil, "pgbridge (devel) (go"},
		{"", build, "pgbridge v1.2.3 (abc, go"},
		{"v2", build, "pgbridge v2 (abc, go"},
	} {
		if got := readVersion(c.linked, c.build).String(); !strings.HasPrefix(got, c.want) {
			t.Errorf("version %q; want %q", got, c.want)
		}
	}
	for _, args := range [][]string{{"version"}, {"version", "--json"}} {
		if got := call(t, backend{}, args...); got.code != exitDone || !strings.Contains(got.out, "linux/") && !strings.Contains(got.out, "darwin/") {
			t.Errorf("%q: %+v", args, got)
		}
	}
}
