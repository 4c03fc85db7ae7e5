package integration

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pgbridge/pgbridge/integration/cluster"
)

// docStep says more of something that a document shows than that it is run as it stands, and succeeds.
type docStep struct {
	doc, text string
	// on is the node on which SQL is run, or whose configuration a command gets that has none in the document; a if empty.
	on string
	// before brings about what the text is for, and returns what stands in it for something of the reader's, each followed by what this
	// cluster has.
	before func(d *docs) []string
	// instead is done where a command would go on for ever.
	instead func(d *docs)
	exit    int
	says    string // parts of the answer, a line each
	after   func(d *docs)
	last    bool // it takes a node away
}

// planned is something shown, and what is known of it.
type planned struct {
	shown
	how docStep
}

// docs is the cluster on which the documents' commands are run.
type docs struct {
	*cluster.Cluster
	t       *testing.T
	a, b, z *cluster.Node // z is c
	dir     string        // of the shell
	schema  []string      // what was changed, for a node that joins
}

// TestDocumentedCommands: each command that README.md and docs show, and all SQL, does what they say, on real nodes. What cannot be run
// here is in notRun, with the reason; a command that is neither run nor there fails the test, and so does what no document has any more.
func TestDocumentedCommands(t *testing.T) {
	t.Parallel()
	var all []shown
	for _, path := range documents(t) {
		all = append(all, readShown(t, path)...)
	}
	if len(all) < 100 {
		t.Fatalf("%d commands were found: have the documents another form?", len(all))
	}
	first, last := plan(t, all)
	if t.Failed() {
		return
	}
	d := newDocs(t)
	for _, p := range append(first, last...) {
		d.do(p)
	}
	d.WaitConverged()
}

// plan says what is run, and how; last what takes nodes away.
func plan(t *testing.T, all []shown) (first, last []planned) {
	t.Helper()
	known, times := map[string]bool{}, map[string]int{}
	for _, s := range all {
		known[s.text] = true
		if made.MatchString(s.text) {
			requireMade(t, s)
		}
		if made.MatchString(s.text) || notRun[s.text] != "" {
			continue
		}
		how, found := stepOf(s, times[s.doc+s.text])
		times[s.doc+s.text]++
		times[s.text]++
		form := func(other shown) bool {
			return other.kind == shownCommand && strings.Contains(other.text+" ", s.text+" ")
		}
		switch {
		case !found && s.kind == shownName:
			if !slices.ContainsFunc(all, form) {
				t.Errorf("%s:%d: %q is run in no form: docsSteps or notRun wants a line for it", s.doc, s.line, s.text)
			}
		case !found && s.kind == shownCommand && times[s.text] > 1: // it is run already
		case !found && s.kind == shownCommand && !strings.HasPrefix(s.text, "pgbridge "):
			t.Errorf("%s:%d: nothing is known of %q: docsSteps or notRun wants a line for it", s.doc, s.line, s.text)
		case how.last:
			last = append(last, planned{s, how})
		default:
			first = append(first, planned{s, how})
		}
	}
	for text := range notRun {
		if !known[text] {
			t.Errorf("notRun has %q, which no document shows any more", text)
		}
	}
	for _, p := range docsSteps {
		if times[p.doc+p.text]--; times[p.doc+p.text] < 0 {
			t.Errorf("docsSteps has %q for %s, which does not show it any more", p.text, p.doc)
		}
	}
	return first, last
}

// stepOf finds what is known of something that the document has shown so many times before: where it has fewer steps, the last one.
func stepOf(s shown, before int) (how docStep, found bool) {
	for _, p := range docsSteps {
		if p.doc == s.doc && p.text == s.text {
			how, found = p, true
			if before--; before < 0 {
				break
			}
		}
	}
	return how, found
}

var (
	// made is a command of make's, and given what its variables are set to there.
	made  = regexp.MustCompile(`^(?:[A-Z_]+=\S+ )*make `)
	given = regexp.MustCompile(`\b([A-Z_]+)=("[^"]*"|'[^']*'|\S*)`)
)

// requireMade checks that the Makefile has what is to be made, and tests have the names that it is given: most take minutes.
func requireMade(t *testing.T, s shown) {
	t.Helper()
	makefile, err := os.ReadFile("../Makefile")
	if err != nil {
		t.Fatal(err)
	}
	for _, target := range strings.Fields(given.ReplaceAllString(s.text, ""))[1:] {
		if !strings.Contains(string(makefile), "\n"+target+":") {
			t.Errorf("%s:%d: %s: the Makefile has no %s", s.doc, s.line, s.text, target)
		}
	}
	for _, m := range given.FindAllStringSubmatch(s.text, -1) {
		if name := strings.Trim(m[2], `"'$`); m[1] == "RUN" && !hasTest(t, name) {
			t.Errorf("%s:%d: %s: there is no test %s", s.doc, s.line, s.text, name)
		}
	}
}

// hasTest reports whether a test's name begins so.
func hasTest(t *testing.T, name string) bool {
	t.Helper()
	files, err := filepath.Glob("*_test.go")
	if err != nil {
		t.Fatal(err)
	}
	return slices.ContainsFunc(files, func(file string) bool {
		text, err := os.ReadFile(file)
		return err == nil && strings.Contains(string(text), "\nfunc "+name)
	})
}

// do runs one of them.
func (d *docs) do(p planned) {
	d.t.Helper()
	begun := time.Now()
	if p.how.on == "" {
		p.how.on = "a"
	}
	if p.how.before != nil {
		as := strings.NewReplacer(p.how.before(d)...)
		p.text, p.sql, p.how.says = as.Replace(p.text), as.Replace(p.sql), as.Replace(p.how.says)
	}
	prepared := time.Since(begun)
	var answer string
	exit := p.how.exit
	switch {
	case p.how.instead != nil:
		p.how.instead(d)
	case p.kind == shownSQL:
		answer = d.query(p)
	default:
		answer, exit = d.shell(p)
	}
	d.require(p, answer, exit)
	d.t.Logf("%s:%d: %s: %d (%v, and %v before)", p.doc, p.line, p.text, exit, (time.Since(begun) - prepared).Round(time.Millisecond), prepared.Round(time.Millisecond))
	if p.how.after != nil {
		p.how.after(d)
	}
}

// require checks what the document, or what is known beside it, says of the answer.
func (d *docs) require(p planned, answer string, exit int) {
	d.t.Helper()
	if exit != p.how.exit {
		d.t.Errorf("%s:%d: %s\nends with %d, not %d:\n%.3000s", p.doc, p.line, p.text, exit, p.how.exit, answer)
	}
	for part := range strings.SplitSeq(p.how.says, "\n") {
		if !strings.Contains(answer, part) {
			d.t.Errorf("%s:%d: %s\ndoes not say %q:\n%.3000s", p.doc, p.line, p.text, part, answer)
		}
	}
	for _, line := range p.answer {
		if headings.MatchString(line) && !strings.Contains(strings.Join(strings.Fields(answer), " "), strings.Join(strings.Fields(line), " ")) {
			d.t.Errorf("%s:%d: %s\nhas not the columns %s:\n%.3000s", p.doc, p.line, p.text, line, answer)
		}
	}
}

var (
	// headings is the first line of a table in an answer.
	headings = regexp.MustCompile(`^[A-Z]+( [A-Z]+)*(  +[A-Z]+( [A-Z]+)*)+$`)
	// configOf is how documents name the configuration of a node, of which some have names that tell more.
	configOf = regexp.MustCompile(`--config (?:\S*/)?(\w+)\.yaml`)
	// without are the commands that take no configuration.
	without = regexp.MustCompile(`^pgbridge (version|completion|man)\b`)
)

// nodeOf are names of configurations that are no names of nodes here.
var nodeOf = map[string]string{"pgbridge": "a", "paris": "a", "tokyo": "b"}

// shell runs a command line.
func (d *docs) shell(p planned) (answer string, exit int) {
	d.t.Helper()
	text := configOf.ReplaceAllStringFunc(p.text, func(m string) string {
		name := configOf.FindStringSubmatch(m)[1]
		if n := nodeOf[name]; n != "" {
			name = n
		}
		return "--config '" + d.Node(name).File + "'"
	})
	if text == p.text && !without.MatchString(text) {
		text += " --config '" + d.Node(p.how.on).File + "'"
	}
	ctx, cancel := context.WithTimeout(d.t.Context(), 3*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "sh", "-c", text)
	cmd.Dir = d.dir
	cmd.Env = append(os.Environ(), "PATH="+filepath.Dir(cluster.Binary(d.t))+string(os.PathListSeparator)+os.Getenv("PATH"),
		"PGBRIDGE_TOPOLOGY_FAILOVER_AFTER="+failoverAfter.String())
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState == nil {
		d.t.Fatalf("%s: %v", text, err)
	}
	return string(out), cmd.ProcessState.ExitCode()
}

// query runs SQL on the node, or on all.
func (d *docs) query(p planned) (answer string) {
	d.t.Helper()
	on := d.Nodes
	if p.how.on != "all" {
		on = []*cluster.Node{d.Node(p.how.on)}
	}
	for _, n := range on {
		d.t.Logf("%s:%d on node %s", p.doc, p.line, n.Name)
		if strings.HasPrefix(p.sql, "SELECT ") {
			answer += fmt.Sprintln(strings.Join(n.Query(p.sql), "\n"))
		} else {
			n.Exec(p.sql)
		}
	}
	return answer
}
