package integration

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// shown is something that a document tells its reader to run.
type shown struct {
	doc    string // such as control.md
	line   int
	kind   shownKind
	text   string   // a command without prompt and remark; the name of SQL is its first line
	sql    string   // all of the SQL
	answer []string // what the document shows below a command
}

type shownKind int

const (
	shownCommand shownKind = iota
	shownSQL
	shownName // of a command by its name alone, in the text
)

var (
	remark = regexp.MustCompile(`\s+#.*$`)
	// started is what starts the program elsewhere: with it stripped the command is one of this machine.
	started = regexp.MustCompile(`^(?:docker compose exec \S+ |sudo -u \S+ |bin/|\./)+pgbridge `)
	// unmarked is a command in a block that has no prompts.
	unmarked = regexp.MustCompile(`^pgbridge [a-z-]+( |$)`)
	// inText is what the text itself tells to run; it may go over the end of a line.
	inText = regexp.MustCompile("`((?:docker compose exec \\S+ |sudo -u \\S+ |bin/)?pgbridge\\s[^`]+|make\\s[^`]+|SELECT\\s[^`]+)`")
	// named is a command without any argument.
	named = regexp.MustCompile(`^pgbridge( [a-z]+)+$`)
)

// documents are the files whose commands are run, README.md first.
func documents(t *testing.T) []string {
	t.Helper()
	files, err := filepath.Glob("../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	return append([]string{"../README.md"}, files...)
}

// readShown returns what a document shows to be run, in its order. Examples of conflicts.md are TestConflictExamples'.
func readShown(t *testing.T, path string) []shown {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return showing(t, filepath.Base(path), string(text))
}

func showing(t *testing.T, doc, text string) (all []shown) {
	t.Helper()
	block, fenced, answering := "", false, false
	var sql, prose []string // prose has an empty line for each one of a block
	for i, line := range strings.Split(text, "\n") {
		trimmed := strings.TrimSpace(line)
		if strings.HasPrefix(trimmed, "```") {
			if fenced && block == "sql" {
				all = append(all, shown{doc: doc, line: i + 1 - len(sql), kind: shownSQL, text: sql[0], sql: strings.Join(sql, "\n")})
			}
			fenced, block, sql, answering = !fenced, strings.TrimPrefix(trimmed, "```"), nil, false
			if !slices.Contains([]string{"", "sh", "console", "sql", "sql example", "yaml"}, block) {
				t.Errorf("%s:%d: nobody knows whether a block marked %q is to be run", doc, i+1, block)
			}
			prose = append(prose, "")
			continue
		}
		if !fenced && !strings.HasPrefix(line, "    ") {
			prose = append(prose, line)
			continue
		}
		prose = append(prose, "")
		prompted, hasPrompt := strings.CutPrefix(trimmed, "$ ")
		switch {
		case fenced && block == "sql":
			sql = append(sql, trimmed)
		case trimmed == "" || strings.HasPrefix(trimmed, "#"):
		case hasPrompt || !fenced || block == "sh" || block == "" && unmarked.MatchString(trimmed):
			all = append(all, shown{doc: doc, line: i + 1, text: plain(prompted)})
			answering = fenced
		case answering:
			all[len(all)-1].answer = append(all[len(all)-1].answer, trimmed)
		}
	}
	if fenced {
		t.Errorf("%s: the last block has no end", doc)
	}
	all = append(all, shownInText(doc, strings.Join(prose, "\n"))...)
	slices.SortStableFunc(all, func(x, y shown) int { return x.line - y.line })
	return all
}

func shownInText(doc, prose string) (all []shown) {
	for _, m := range inText.FindAllStringSubmatchIndex(prose, -1) {
		s := shown{doc: doc, line: 1 + strings.Count(prose[:m[0]], "\n"), text: plain(prose[m[2]:m[3]])}
		switch {
		case strings.HasPrefix(s.text, "SELECT "):
			s.kind, s.sql = shownSQL, s.text
		case named.MatchString(s.text):
			s.kind = shownName
		}
		all = append(all, s)
	}
	return all
}

// plain is a command without a remark and the spaces that align it, and as one of this machine.
func plain(text string) string {
	return started.ReplaceAllString(strings.Join(strings.Fields(remark.ReplaceAllString(text, "")), " "), "pgbridge ")
}

// TestCommandsAreFound: whatever form a document gives a command, it is found, and what is none is not taken for one.
func TestCommandsAreFound(t *testing.T) {
	t.Parallel()
	all := showing(t, "x.md", `Text with `+"`pgbridge status`, `pgbridge wait\n  --for x`, `--flag`, `SELECT 1`, `make it`"+`.

    pgbridge  top   # a remark
    $ docker compose exec a pgbridge ddl --list

1. In a list:

   `+"```sh"+`
   # nothing
   ./pgbridge version
   other command
   `+"```"+`

`+"```"+`
$ pgbridge pause --list
ORIGIN  TABLE
pgbridge keys
pgbridge: failed
`+"```"+`

`+"```sql"+`
SELECT 2
FROM t;
`+"```"+`

`+"```yaml"+`
pgbridge: 1
`+"```"+`
`)
	var got []string
	for _, s := range all {
		got = append(got, s.text)
	}
	want := []string{"pgbridge status", "pgbridge wait --for x", "SELECT 1", "make it", "pgbridge top", "pgbridge ddl --list", "pgbridge version", "other command",
		"pgbridge pause --list", "pgbridge keys", "SELECT 2"}
	if !slices.Equal(got, want) {
		t.Errorf("found\n%q\nwant\n%q", got, want)
	}
	if all[0].kind != shownName || all[1].kind != shownCommand || all[2].kind != shownSQL || !strings.HasSuffix(all[10].sql, "FROM t;") || !slices.Equal(all[8].answer, []string{"ORIGIN  TABLE"}) {
		t.Errorf("of these: %+v", all)
	}
}
