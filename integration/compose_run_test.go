package integration_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/pgbridge/pgbridge/integration/cluster"
	"github.com/pgbridge/pgbridge/integration/pgcluster"
	"github.com/pgbridge/pgbridge/integration/pgtest"
)

// composeFile is what this test runs of docker-compose.yml; the module in
// compose/ checks the rest of it.
type composeFile struct {
	Services map[string]struct {
		Command     []string
		Environment map[string]string
		HealthCheck struct{ Test []string }
	}
	Configs map[string]struct{ Content string }
}

// composeNode is one pair of services, run as processes.
type composeNode struct {
	name    string
	primary *pgcluster.Cluster
	dsn     string
	bridge  *exec.Cmd
	env     []string
	log     bytes.Buffer // of the bridge; read once it has ended
}

const composePatience = time.Minute

// TestComposeServicesRunAsProcesses does by hand what docker compose would do:
// each service's command with its configs and environment, its health check
// until that is content, and then writes on every node. Only what containers
// change is put in its place: host names, ports, and the paths of files.
func TestComposeServicesRunAsProcesses(t *testing.T) {
	file := readCompose(t)
	binary := cluster.Binary(t)
	ctx := t.Context()
	places := map[string]string{} // what stands in the file, and what it is here
	var nodes []*composeNode
	for _, name := range []string{"a", "b", "c"} {
		n := &composeNode{name: name}
		n.startPrimary(ctx, t, file)
		places["pg-"+name+":5432"] = fmt.Sprintf("127.0.0.1:%d", n.primary.Port())
		places["bridge-"+name+":4222"] = cluster.FreeAddr(t)
		nodes = append(nodes, n)
	}
	for _, n := range nodes {
		n.startBridge(ctx, t, file, binary, places)
	}
	for _, n := range nodes {
		check := file.Services["bridge-"+n.name].HealthCheck.Test
		awaitAnswer(ctx, t, "bridge-"+n.name+" is healthy", func() (string, bool) {
			cmd := n.command(ctx, binary, check[1:])
			out, err := cmd.CombinedOutput()
			return fmt.Sprintf("%v: %s", err, out), err == nil
		})
	}
	for _, n := range nodes {
		pgtest.Exec(t, n.dsn, "INSERT INTO notes (text) VALUES ($1)", "from "+n.name)
	}
	for _, n := range nodes {
		awaitAnswer(ctx, t, n.name+" has the notes of all", func() (string, bool) {
			got := strings.Join(pgtest.Query(t, n.dsn, "SELECT text FROM notes ORDER BY text"), ", ")
			return got, got == "from a, from b, from c"
		})
	}
	for _, n := range nodes {
		if err := n.bridge.Process.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
	}
	for _, n := range nodes {
		if err := n.bridge.Wait(); err != nil {
			t.Errorf("bridge-%s: SIGTERM ends it with %v\n%s", n.name, err, n.log.String())
		}
	}
}

func readCompose(t *testing.T) composeFile {
	t.Helper()
	content, err := os.ReadFile("../docker-compose.yml")
	if err != nil {
		t.Fatal(err)
	}
	var file composeFile
	if err := yaml.Unmarshal(content, &file); err != nil {
		t.Fatal(err)
	}
	return file
}

// startPrimary runs pg-<name>: its settings, its database, its health check and
// its init script.
func (n *composeNode) startPrimary(ctx context.Context, t *testing.T, file composeFile) {
	t.Helper()
	service := file.Services["pg-"+n.name]
	settings := map[string]string{"wal_level": "replica", "track_commit_timestamp": "off"} // PostgreSQL's defaults
	for _, word := range service.Command {
		if name, value, ok := strings.Cut(word, "="); ok {
			settings[name] = value
		}
	}
	n.primary = pgtest.NewCluster(t, 18, settings)
	database := service.Environment["POSTGRES_DB"]
	n.dsn = n.primary.DSN(database)
	pgtest.Exec(t, n.primary.DSN("postgres"), "CREATE DATABASE "+database)

	check := service.HealthCheck.Test
	cmd := exec.CommandContext(ctx, pgtest.Program(t, check[1]), check[2:]...)
	cmd.Env = append(os.Environ(), fmt.Sprintf("PGPORT=%d", n.primary.Port()))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("health check of pg-%s: %v: %s", n.name, err, out)
	}
	pgtest.Exec(t, n.dsn, file.Configs["tables"].Content)
}

// startBridge runs bridge-<name> with the image's command.
func (n *composeNode) startBridge(ctx context.Context, t *testing.T, file composeFile, binary string, places map[string]string) {
	t.Helper()
	dir := t.TempDir()
	replace := []string{"0.0.0.0:4222", places["bridge-"+n.name+":4222"], "/var/lib/pgbridge", filepath.Join(dir, "data")}
	for from, to := range places {
		replace = append(replace, from, to)
	}
	here := strings.NewReplacer(replace...)
	config := filepath.Join(dir, "pgbridge.yaml")
	if err := os.WriteFile(config, []byte(here.Replace(file.Configs["bridge"].Content)), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, value := range file.Services["bridge-"+n.name].Environment {
		n.env = append(n.env, name+"="+here.Replace(value))
	}
	n.env = append(n.env, "CONFIG="+config)
	n.bridge = n.command(ctx, binary, append(imageWords(t, "ENTRYPOINT"), imageWords(t, "CMD")...))
	n.bridge.Stdout, n.bridge.Stderr = &n.log, &n.log
	if err := n.bridge.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		n.bridge.Process.Kill() // one that the test stopped is gone
		n.bridge.Wait()
		if t.Failed() {
			t.Logf("bridge-%s said\n%s", n.name, n.log.String())
		}
	})
}

// command is a command of the image, run here. words begins with pgbridge.
func (n *composeNode) command(ctx context.Context, binary string, words []string) *exec.Cmd {
	args := append([]string(nil), words[1:]...)
	env := []string{"HOME=" + os.TempDir()}
	for _, assignment := range n.env {
		if config, ok := strings.CutPrefix(assignment, "CONFIG="); ok {
			for i := range args {
				args[i] = strings.ReplaceAll(args[i], "/etc/pgbridge/pgbridge.yaml", config)
			}
			continue
		}
		env = append(env, assignment)
	}
	cmd := exec.CommandContext(ctx, binary, args...)
	cmd.Env = env
	return cmd
}

// imageWords reads an instruction in exec form out of Dockerfile.
func imageWords(t *testing.T, instruction string) []string {
	t.Helper()
	dockerfile, err := os.ReadFile("../Dockerfile")
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`(?m)^` + instruction + ` (\[.*\])$`).FindSubmatch(dockerfile)
	var words []string
	if m == nil || json.Unmarshal(m[1], &words) != nil {
		t.Fatalf("Dockerfile has no %s in exec form", instruction)
	}
	return words
}

// awaitAnswer repeats a question until its answer is as wanted, and fails with the
// last answer when ctx ends first.
func awaitAnswer(ctx context.Context, t *testing.T, what string, ask func() (answer string, ok bool)) {
	t.Helper()
	ctx, cancel := context.WithTimeout(ctx, composePatience)
	defer cancel()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		answer, ok := ask()
		if ok {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("not within %v: %s; the last answer was %s", composePatience, what, answer)
		case <-tick.C:
		}
	}
}
