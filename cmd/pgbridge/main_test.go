package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/pgbridge/pgbridge/bridge"
	"github.com/pgbridge/pgbridge/config"
	"github.com/pgbridge/pgbridge/demo"
)

var update = flag.Bool("update", false, "write the golden files in testdata anew")

// requireGolden compares text with a file in testdata.
func requireGolden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs; run go test ./cmd/pgbridge -update if this is right:\n%s", path, got)
	}
}

// line is what stands behind a command, and the exit code with which it ends; a bare one is not given the configuration.
type line struct {
	args []string
	code int
	bare bool
}

// of makes a line of words, bare one that has no configuration.
func of(words string, code int) line   { return line{args: strings.Fields(words), code: code} }
func bare(words string, code int) line { return line{strings.Fields(words), code, true} }

// requireSession calls a command with one line after the other, and compares what a person would have seen with a file in testdata.
func requireSession(t *testing.T, command string, b func() backend, lines ...line) {
	t.Helper()
	path := writeConfig(t)
	var seen strings.Builder
	for _, l := range lines {
		args := append([]string{command}, l.args...)
		shown := "$ pgbridge " + command
		for _, a := range l.args {
			if strings.Contains(a, " ") {
				a = strconv.Quote(a)
			}
			shown += " " + a
		}
		if !l.bare {
			args = append(args, "--config", path)
		}
		got := call(t, b(), args...)
		if got.code != l.code {
			t.Errorf("%q: code %d, want %d", l.args, got.code, l.code)
		}
		fmt.Fprintf(&seen, "%s\n%s%s\n", shown, got.out, got.err)
	}
	requireGolden(t, command+".txt", seen.String())
}

// outcome is what a command line leaves behind.
type outcome struct {
	code     int
	out, err string
}

// call runs one command line against b, without signals.
func call(t *testing.T, b backend, args ...string) outcome {
	t.Helper()
	var out, errs bytes.Buffer
	code := execute(t.Context(), args, terminal{&out, &errs}, b, nil, func(int) { t.Error("left at once") })
	return outcome{code, out.String(), errs.String()}
}

// writeConfig writes a file that loads, and returns its path.
func writeConfig(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "pgbridge.yaml")
	text := "cluster: shop\nnode: a\npostgres:\n  dsn: host=/tmp dbname=app\n" +
		"topology:\n  nodes:\n    a: nats://127.0.0.1:4222\n    b: nats://127.0.0.1:4223\n"
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestCompletion: the package brings these scripts, and they ask the program for what is not in them.
func TestCompletion(t *testing.T) {
	for shell, want := range map[string]string{"bash": "complete -o default -F __start_pgbridge pgbridge", "zsh": "#compdef pgbridge", "fish": "complete -c pgbridge"} {
		if got := call(t, backend{}, "completion", shell); got.code != 0 || !strings.Contains(got.out, want) {
			t.Errorf("%s: code %d, without %q: %s", shell, got.code, want, got.err)
		}
	}
	if got := call(t, backend{}, "__complete", "conflicts", "u"); got.code != 0 || !strings.HasPrefix(got.out, "undo\t") {
		t.Errorf("conflicts u is completed to %q, %s", got.out, got.err)
	}
}

// TestMan: each command that help lists has a manual page, with its flags.
func TestMan(t *testing.T) {
	dir := t.TempDir()
	if got := call(t, backend{}, "man", dir); got.code != exitDone {
		t.Fatalf("code %d: %s", got.code, got.err)
	}
	for page, want := range map[string]string{"pgbridge": "pgbridge-node(1)", "pgbridge-node-join": `\fB--existing\fP`, "pgbridge-conflicts-undo": "undo", "pgbridge-status": `\fB--json\fP`} {
		text, err := os.ReadFile(filepath.Join(dir, page+".1"))
		if plain := strings.ReplaceAll(string(text), `\-`, "-"); err != nil || !strings.Contains(plain, want) {
			t.Errorf("page %s lacks %q: %v", page, want, err)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "pgbridge-man.1")); err == nil {
		t.Error("the hidden command has a page")
	}
	if got := call(t, backend{}, "man"); got.code != exitUsage {
		t.Errorf("without a directory: code %d", got.code)
	}
}

func TestHelp(t *testing.T) {
	var all strings.Builder
	for _, args := range [][]string{{}, {"run", "--help"}, {"setup", "--help"}, {"status", "--help"}, {"reload", "--help"}, {"keys", "--help"}, {"conflicts"}, {"conflicts", "list", "--help"},
		{"conflicts", "show", "--help"}, {"conflicts", "undo", "--help"}, {"conflicts", "stats", "--help"}, {"orphans", "--help"}, {"verify", "--help"}, {"demo", "--help"}, {"version", "--help"},
		{"doctor", "--help"}, {"top", "--help"}, {"sequences"}, {"sequences", "plan", "--help"}, {"sequences", "apply", "--help"}} {
		got := call(t, backend{}, args...)
		if got.code != exitDone || got.err != "" {
			t.Errorf("pgbridge %q: code %d, %s", args, got.code, got.err)
		}
		fmt.Fprintf(&all, "$ pgbridge %s\n%s\n", strings.Join(args, " "), got.out)
	}
	requireGolden(t, "help.txt", all.String())
}

// TestWrongUsage: exit code 2 and one line that names the mend.
func TestWrongUsage(t *testing.T) {
	path := writeConfig(t)
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"stat"}, `unknown command "stat"; did you mean "status"?`},
		{[]string{"replicate"}, `unknown command "replicate"; "pgbridge --help" lists the commands`},
		{[]string{"--config", path}, `unknown flag: --config; "pgbridge --help" lists the flags`},
		{[]string{"run", "--confg", path}, `unknown flag: --confg; "pgbridge run --help" lists the flags`},
		{[]string{"run", "--config"}, `flag needs an argument: --config; "pgbridge run --help" lists the flags`},
		{[]string{"run", path}, fmt.Sprintf("run takes no arguments, got %q; %q shows its use", path, "pgbridge run --help")},
		{[]string{"version", "x"}, `version takes no arguments, got "x"; "pgbridge version --help" shows its use`},
		{[]string{"run", "--set", "node"}, `--set "node" is not key=value; write it as in --set log.level=debug`},
		{[]string{"run", "--config", path, "--set", "log.levle=x"}, `--set: log.levle: unknown key; the nearest one is log.level`},
		{[]string{"status", "--config", path, "--set", "node=c"},
			path + `:6: topology.nodes: lacks this node, "c"; the names there are a, b: add it, or correct node`},
		{[]string{"setup", "--config", "absent.yaml"},
			"open absent.yaml: no such file or directory; name a readable file with --config, or set every key by PGBRIDGE_ variables"},
		{[]string{"conflicts", "lst"}, `unknown command "lst"; did you mean "list"?`},
		{[]string{"conflicts", "redo"}, `unknown command "redo"; did you mean "undo"?`},
		{[]string{"conflicts", "repeat"}, `unknown command "repeat"; "pgbridge conflicts --help" lists the commands`},
		{[]string{"conflicts", "list", "7"}, `list takes no arguments, got "7"; "pgbridge conflicts list --help" shows its use`},
		{[]string{"conflicts", "list", "--limit", "0"}, `--limit 0 is out of range; use 1 or more`},
		{[]string{"conflicts", "list", "--since", "yesterday"},
			`invalid argument "yesterday" for "--since" flag: it is neither a duration, such as 2h, nor a time, such as 2006-01-02T15:04:05Z; "pgbridge conflicts list --help" lists the flags`},
		{[]string{"conflicts", "list", "--clock-error", "5"},
			`invalid argument "5" for "--clock-error" flag: "5" is not a duration; write a number with ms, s, m, h or d, such as 5s; "pgbridge conflicts list --help" lists the flags`},
		{[]string{"conflicts", "list", "--key", "7"}, `--key "7" is neither column=value nor a JSON object; write it as in --key id=7`},
		{[]string{"conflicts", "list", "--key", "{7}"},
			`--key "{7}" is not a JSON object (invalid character '7' looking for beginning of object key string); write it as in --key '{"id": 7}'`},
		{[]string{"conflicts", "show"}, `show needs the id of a conflict; "pgbridge conflicts list" shows them`},
		{[]string{"conflicts", "show", "1", "2"}, `show takes one id of a conflict, got 2; "pgbridge conflicts show --help" shows its use`},
		{[]string{"conflicts", "undo", "1", "-c"}, `flag needs an argument: 'c' in -c; "pgbridge conflicts undo --help" lists the flags`},
		{[]string{"conflicts", "undo", "1", "x"}, `"x" is not the id of a conflict; "pgbridge conflicts list" shows them`},
		{[]string{"demo", "--nodes", "1"}, `--nodes 1 is out of range; use 2 to 9`},
		{[]string{"demo", "--scenario", "opera"}, `--scenario "opera" is not known; use tour, datacenters, offline, editor`},
		{[]string{"demo", "--topology", "star"}, `--topology "star" cannot be; use ring, star, mesh, with --scenario datacenters`},
		{[]string{"demo", "--seconds", "0"}, `--seconds 0 is out of range; use 1 to 3600`},
		{[]string{"demo", "--nodes", "many"},
			`invalid argument "many" for "--nodes" flag: strconv.ParseInt: parsing "many": invalid syntax; "pgbridge demo --help" lists the flags`},
	} {
		got := call(t, backend{}, c.args...)
		if want := (outcome{exitUsage, "", "pgbridge: " + c.want + "\n"}); got != want {
			t.Errorf("pgbridge %q:\n got %+v\nwant %+v", c.args, got, want)
		}
	}
}

// TestEveryProblemHasItsLine: a configuration with two faults is told in two lines, each with the name of
// the program.
func TestEveryProblemHasItsLine(t *testing.T) {
	got := call(t, backend{}, "run", "--config", writeConfig(t), "--set", "log.level=loud", "--set", "cluster=A")
	if got.code != exitUsage || strings.Count(got.err, "pgbridge: --set: ") != 2 || strings.Count(got.err, "\n") != 2 {
		t.Errorf("%+v", got)
	}
}

func TestVerbsReachTheBackend(t *testing.T) {
	var called []string
	check := func(verb string, cfg *config.Config) {
		if called = append(called, verb); cfg.Cluster != "shop" || cfg.Log.Level != "debug" {
			t.Errorf("%s: configuration\n%s", verb, cfg)
		}
	}
	b := backend{
		run: func(ctx context.Context, cfg *config.Config, opts bridge.Options) error {
			check("run", cfg)
			if !opts.Logger.Enabled(ctx, slog.LevelDebug) {
				t.Error("run: the log level is not handed on")
			}
			return nil
		},
		setup: func(_ context.Context, cfg *config.Config, _ func(string)) error { check("setup", cfg); return nil },
		restored: func(_ context.Context, cfg *config.Config, _ func(string)) error {
			check("node restored", cfg)
			return nil
		},
		setupSQL: func(_ context.Context, cfg *config.Config) ([]string, error) {
			check("setup --print-sql", cfg)
			return []string{"CREATE SCHEMA IF NOT EXISTS pgbridge", "SELECT 1;\n"}, nil
		},
		status: func(_ context.Context, cfg *config.Config) (*bridge.Report, error) {
			check("status", cfg)
			return &bridge.Report{}, nil
		},
		demo: func(_ context.Context, opts demo.Options) error {
			called = append(called, fmt.Sprintf("demo %d %s %t", opts.Nodes, opts.Duration, opts.Keep))
			return nil
		},
	}
	flags := []string{"--config", writeConfig(t), "--set", "log.level=debug"}
	for _, c := range []struct{ verb, out string }{
		{"run", ""},
		{"setup", "node a of cluster shop is set up\n"},
		{"setup --print-sql", "-- pgbridge setup of node a, cluster shop\n\nCREATE SCHEMA IF NOT EXISTS pgbridge;\n\nSELECT 1;\n"},
		{"node restored", "node a of cluster shop will be brought back: start its bridge\n"},
	} {
		if got := call(t, b, append(strings.Fields(c.verb), flags...)...); got != (outcome{exitDone, c.out, ""}) {
			t.Errorf("%s: %+v", c.verb, got)
		}
	}
	call(t, b, append([]string{"status"}, flags...)...)
	call(t, b, "demo")
	call(t, b, "demo", "--nodes", "2", "--seconds", "5", "--keep")
	want := "run, setup, setup --print-sql, node restored, status, demo 0 20s false, demo 2 5s true"
	if got := strings.Join(called, ", "); got != want {
		t.Errorf("called %s\nwant %s", got, want)
	}
}

// TestFailureIsTold: what a verb returns is printed once and mapped to an exit code.
func TestFailureIsTold(t *testing.T) {
	fenced := fmt.Errorf("publish: %w", coded{exitFenced})
	b := backend{
		run:      func(context.Context, *config.Config, bridge.Options) error { return fenced },
		setup:    func(context.Context, *config.Config, func(string)) error { return errors.New("create slot: no") },
		setupSQL: func(context.Context, *config.Config) ([]string, error) { return nil, errors.New("plan: no") },
		status: func(context.Context, *config.Config) (*bridge.Report, error) {
			return nil, errors.New("no bridge runs")
		},
		demo: func(context.Context, demo.Options) error {
			return fmt.Errorf("compare rows: %w", coded{exitFound})
		},
	}
	path := writeConfig(t)
	for _, c := range []struct {
		args []string
		want outcome
	}{
		{[]string{"run", "-c", path}, outcome{exitFenced, "", "pgbridge: publish: coded\n"}},
		{[]string{"setup", "-c", path}, outcome{exitFailed, "", "pgbridge: create slot: no\n"}},
		{[]string{"setup", "-c", path, "--print-sql"}, outcome{exitFailed, "", "pgbridge: plan: no\n"}},
		{[]string{"status", "-c", path}, outcome{exitFailed, "", "pgbridge: no bridge runs\n"}},
		{[]string{"demo"}, outcome{exitFound, "", "pgbridge: compare rows: coded\n"}},
	} {
		if got := call(t, b, c.args...); got != c.want {
			t.Errorf("pgbridge %q:\n got %+v\nwant %+v", c.args, got, c.want)
		}
	}
}

// TestFirstSignalStopsSecondLeaves drives run through both signals; each step awaits the one before.
func TestFirstSignalStopsSecondLeaves(t *testing.T) {
	signals, left := make(chan os.Signal), make(chan int, 1)
	b := backend{run: func(ctx context.Context, _ *config.Config, _ bridge.Options) error {
		signals <- syscall.SIGTERM
		<-ctx.Done() // the first signal ends the context
		signals <- os.Interrupt
		if code := <-left; code != exitFailed { // the second does not wait for run to return
			t.Errorf("left with code %d", code)
		}
		return nil
	}}
	var errs bytes.Buffer
	code := execute(t.Context(), []string{"run", "-c", writeConfig(t)}, terminal{&errs, &errs}, b, signals, func(code int) { left <- code })
	if want := "pgbridge: terminated: stopping; a second signal leaves at once\n"; code != exitDone || errs.String() != want {
		t.Errorf("code %d, said %q; want %q", code, errs.String(), want)
	}
}

// TestStopIsBounded: a bridge that does not end is left behind when shutdown_timeout is over.
func TestStopIsBounded(t *testing.T) {
	signals, release := make(chan os.Signal), make(chan struct{})
	defer close(release)
	b := backend{run: func(context.Context, *config.Config, bridge.Options) error {
		signals <- syscall.SIGTERM
		<-release
		return nil
	}}
	var errs bytes.Buffer
	code := execute(t.Context(), []string{"run", "-c", writeConfig(t), "--set", "shutdown_timeout=1s"}, terminal{&errs, &errs}, b, signals, func(int) {})
	if code != exitFailed || !strings.Contains(errs.String(), "shutdown_timeout (1s)") {
		t.Errorf("code %d, said %q", code, errs.String())
	}
}

// TestSignalIsTheReason: a verb that a signal interrupts has failed, and says why.
func TestSignalIsTheReason(t *testing.T) {
	signals := make(chan os.Signal)
	b := backend{setup: func(ctx context.Context, _ *config.Config, _ func(string)) error {
		signals <- os.Interrupt
		<-ctx.Done()
		return fmt.Errorf("create slot: %w", ctx.Err())
	}}
	var errs bytes.Buffer
	code := execute(t.Context(), []string{"setup", "-c", writeConfig(t)}, terminal{&errs, &errs}, b, signals, func(int) {})
	if want := "pgbridge: stopped by signal: interrupt\n"; code != exitFailed || !strings.HasSuffix(errs.String(), want) {
		t.Errorf("code %d, said %q; want %q at its end", code, errs.String(), want)
	}
}

func TestLogger(t *testing.T) {
	for _, c := range []struct {
		cfg  config.Log
		want string
	}{
		{config.Log{Level: "warn", Format: "text"}, "level=WARN msg=\"slot is behind\" node=a wal_held_bytes=5"},
		{config.Log{Level: "debug", Format: "json"}, `"level":"WARN","msg":"slot is behind","node":"a","wal_held_bytes":5}`},
	} {
		var b bytes.Buffer
		log, set := newLogger(&b, config.Log{Level: "error", Format: "text"})
		log = log.With("node", "a") // made before the settings are others
		set(c.cfg)
		log.Warn("slot is behind", "wal_held_bytes", 5)
		if !strings.Contains(b.String(), c.want) {
			t.Errorf("%+v: %s", c.cfg, b.String())
		}
		var least slog.Level
		if err := least.UnmarshalText([]byte(c.cfg.Level)); err != nil {
			t.Fatal(err)
		}
		if !log.Enabled(t.Context(), least) || log.Enabled(t.Context(), least-1) {
			t.Errorf("%+v: the level is not kept", c.cfg)
		}
	}
}

func TestReport(t *testing.T) {
	at := time.Date(2026, 11, 24, 10, 0, 0, 0, time.UTC)
	full := &bridge.Report{
		Cluster: "shop", Node: "a", Epoch: 1, WriterEpoch: 7, At: at, Seq: 1204, Stamp: at.Add(-time.Second),
		Capture: bridge.CaptureReport{State: "connecting", Waiting: "replicate from slot \"pgb_shop_a\": all walsenders are taken"},
		Slot:    bridge.SlotReport{Slot: "pgb_shop_a", State: "active", CapturedLSN: "0/16B3748", ConfirmedLSN: "0/16B3700", WALHeldBytes: 12 << 20},
		Publisher: bridge.PublisherReport{State: "away", FramesInFlight: 2, DurableSeq: 1202,
			Waiting: "connect nats://127.0.0.1:4222: connection refused; start the server or correct nats.url"},
		Stream: bridge.StreamReport{Stream: "PGB_shop_a", Bytes: 3_250_000, LimitBytes: 8 << 30, FirstStreamSeq: 1, LastStreamSeq: 345}, Quarantined: 3, Owed: 2,
		LetGo: []bridge.LetGoReport{{Node: "d", SeenSeq: 100, GoneSeq: 340, Transactions: 240, Since: at.Add(-time.Hour)}},
		Links: []bridge.LinkReport{
			{Link: "b", URL: "nats://10.0.0.2:4222", Origin: "b", State: "connected", AppliedSeq: 1190, AppliedStamp: at, ReceivedSeq: 1192, LagSeconds: 0.21, Queued: 2, QueuedBytes: 700},
			{Link: "c", URL: "nats://10.0.0.3:4222", Origin: "c", State: "waiting", AppliedSeq: 100002, AppliedStamp: at.Add(-5 * time.Minute),
				ReceivedSeq: 100400, LagSeconds: 303, Conflicts: 4, Parked: 1,
				Waiting: "table app.items does not exist here; create it as on node c"},
		},
		Well: true, Verdict: "it works, with 1 warning; 1 transaction is parked", ConflictsPerMinute: 2, WrittenAway: 7,
		Nodes: []bridge.NodeReport{{Node: "b", SeenSeq: 1200, Transactions: 2, Bytes: 2048, Seconds: 1.5}, {Node: "c", Unknown: true}},
		Alarms: []bridge.Alarm{{Code: "slot-lag", Severity: bridge.SeverityWarning, Text: `slot "pgb_shop_a" holds 12.0 MiB of WAL`,
			Mend: "bring the broker back"}},
	}
	for name, r := range map[string]*bridge.Report{"status": full, "status_new": {Cluster: "shop", Node: "a", At: at, Verdict: "it does not work: connection refused",
		Waiting: "connect to PostgreSQL: connection refused; start it or correct postgres.dsn"}} {
		b := backend{status: func(context.Context, *config.Config) (*bridge.Report, error) { return r, nil }}
		path := writeConfig(t)
		requireGolden(t, name+".txt", call(t, b, "status", "-c", path).out)
		requireGolden(t, name+".json", call(t, b, "status", "-c", path, "--json").out)
	}
}

// TestReportOfABridgeThatStarts: who waits for the exit code before writing must not write too early.
func TestReportOfABridgeThatStarts(t *testing.T) {
	b := backend{status: func(context.Context, *config.Config) (*bridge.Report, error) {
		return &bridge.Report{Node: "a", Waiting: "the bridge is starting"}, nil
	}}
	if got := call(t, b, "status", "-c", writeConfig(t), "--json"); got.code != exitFailed || got.err != "pgbridge: the bridge is starting\n" {
		t.Errorf("status: %+v", got)
	}
}

// TestReportOfABridgeThatIsAway: what is known is shown, and the exit code still says that it is away.
func TestReportOfABridgeThatIsAway(t *testing.T) {
	b := backend{status: func(context.Context, *config.Config) (*bridge.Report, error) {
		return &bridge.Report{Node: "a"}, errors.New("no bridge runs")
	}}
	for _, flag := range []string{"--json=false", "--json"} {
		got := call(t, b, "status", "-c", writeConfig(t), flag)
		if got.code != exitFailed || got.err != "pgbridge: no bridge runs\n" || !strings.Contains(got.out, "node") {
			t.Errorf("status %s: %+v", flag, got)
		}
	}
}

func TestSize(t *testing.T) {
	for n, want := range map[int64]string{0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 1536: "1.5 KiB", 12 << 20: "12.0 MiB", 3 << 40: "3.0 TiB", 5000 << 40: "5000.0 TiB"} {
		if got := size(n); got != want {
			t.Errorf("size(%d) = %q; want %q", n, got, want)
		}
	}
}
