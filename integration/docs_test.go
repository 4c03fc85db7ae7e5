package integration

import (
	"os"
	"strings"
	"testing"

	"github.com/pgbridge/pgbridge/integration/cluster"
	"github.com/pgbridge/pgbridge/integration/pgtest"
)

// example is one of docs/conflicts.md: what it asks of the configuration, what is run before, what on each node while they
// are apart, and what must come of it.
type example struct {
	line        int
	config      map[string]string
	setup       []string
	on          map[string][]string
	query, want string
}

// examples reads the fenced blocks that are marked as examples.
func examples(t *testing.T, path string) []example {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var all []example
	var at *example
	into := ""
	for i, line := range strings.Split(string(text), "\n") {
		switch {
		case line == "```sql example":
			all = append(all, example{line: i + 1, on: map[string][]string{}, config: map[string]string{}})
			at, into = &all[len(all)-1], "setup"
		case at == nil:
		case line == "```":
			at = nil
		case strings.HasPrefix(line, "-- conflict."):
			key, value, _ := strings.Cut(strings.TrimPrefix(line, "-- "), ": ")
			at.config[key] = value
		case strings.HasPrefix(line, "-- on "):
			into = strings.TrimPrefix(line, "-- on ")
		case line == "-- everywhere":
			into = "query"
		case into == "setup":
			at.setup = append(at.setup, line)
		case into == "query":
			var ok bool
			if at.query, at.want, ok = strings.Cut(line, ";  -- "); !ok {
				t.Fatalf("%s:%d: %q does not say what comes", path, i+1, line)
			}
		default:
			at.on[into] = append(at.on[into], line)
		}
	}
	return all
}

// TestConflictExamples: what docs/conflicts.md says comes true.
func TestConflictExamples(t *testing.T) {
	t.Parallel()
	all := examples(t, "../docs/conflicts.md")
	if len(all) < 12 {
		t.Fatalf("%d examples", len(all))
	}
	config := map[string]string{}
	var schema, policies []string
	for _, e := range all {
		schema = append(schema, strings.Join(e.setup, "\n"))
		for key, value := range e.config {
			if key == "conflict.tables" {
				policies = append(policies, value)
			} else {
				config[key] = value
			}
		}
	}
	config["conflict.tables"] = strings.Join(policies, "; ")
	c := cluster.New(t, cluster.Options{Nodes: 2, Majors: []int{pgtest.Newest(t)}, Schema: strings.Join(schema, "\n"), Config: config})
	for _, n := range c.Nodes {
		for _, l := range n.Links {
			l.Cut()
		}
	}
	for _, n := range c.Nodes {
		for _, e := range all {
			n.Exec(strings.Join(e.on[n.Name], "\n"))
		}
	}
	for _, n := range c.Nodes {
		for _, l := range n.Links {
			l.Heal()
		}
	}
	c.WaitConverged()
	if n := c.Nodes[0].Value(`SELECT count(*) FROM pgbridge.conflict WHERE kind = 'undecided' AND relation = 'public.contract'`); n != "1" {
		t.Errorf("%s conflicts wait for a person, the page says that of one", n)
	}
	for _, n := range c.Nodes { // of the example of home_wins one row each
		n.AwaitStatus(func(r *cluster.Report) bool { return r.WrittenAway == 1 })
	}
	for _, e := range all {
		for _, n := range c.Nodes {
			t.Logf("docs/conflicts.md:%d on node %s", e.line, n.Name)
			n.Await("SELECT concat_ws(', ', VARIADIC ARRAY(SELECT j.value FROM ("+e.query+") q, json_each_text(row_to_json(q)) j))", e.want)
		}
	}
}
