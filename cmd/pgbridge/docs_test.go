package main

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

var (
	// ended is where a command line goes on with something else than the command.
	ended = regexp.MustCompile(`\s+(#|\||>|2>|&&|;).*$`)
	// word is one of a shell's words: quoted or not.
	word = regexp.MustCompile(`"[^"]*"|'[^']*'|[^\s"']+`)
	// blockLine is a command in a block: indented, behind a prompt, or by itself between fences.
	blockLine = regexp.MustCompile(`^(?:    |\$ )?(?:\$ )?(?:sudo -u \S+ |docker compose exec \S+ )?(?:bin/|\./)?pgbridge ([a-z-]+(?: .*)?)$`)
	inline    = regexp.MustCompile("`(?:sudo -u \\S+ )?pgbridge ([^`]*)`")
)

// commands are those that a document shows: lines whole, and what stands in the text, which may leave arguments out.
func commands(text string) (whole, partial []string) {
	fenced := false
	for line := range strings.SplitSeq(strings.ReplaceAll(text, "\\\n", " "), "\n") {
		if strings.HasPrefix(strings.TrimSpace(line), "```") {
			fenced = !fenced
			continue
		}
		if fenced || strings.HasPrefix(line, "    ") {
			if m := blockLine.FindStringSubmatch(line); m != nil {
				whole = append(whole, m[1])
			}
			continue
		}
		for _, m := range inline.FindAllStringSubmatch(line, -1) {
			partial = append(partial, m[1])
		}
	}
	return whole, partial
}

// TestCommandsOfTheDocs: each command that the documentation shows is one that the program takes, with its flags, and where it is shown
// whole, with its arguments.
func TestCommandsOfTheDocs(t *testing.T) {
	files, err := filepath.Glob("../../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	wholes, partials := 0, 0
	for _, file := range append(files, "../../README.md", "../../CHANGELOG.md", "../../docker-compose.yml", "../../deploy/kubernetes/node.yaml") {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		whole, partial := commands(string(text))
		wholes, partials = wholes+len(whole), partials+len(partial)
		for i, c := range append(whole, partial...) {
			if err := takes(c, i < len(whole)); err != nil {
				t.Errorf("%s: pgbridge %s: %v", filepath.Base(file), c, err)
			}
		}
	}
	if wholes < 30 || partials < 80 {
		t.Errorf("%d commands and %d in the text were found: have the documents another form?", wholes, partials)
	}
	for _, wrong := range []string{"nod leave", "node leave --confg x", "status x", "verify --rows=many"} {
		if takes(wrong, true) == nil {
			t.Errorf("pgbridge %s is taken", wrong)
		}
	}
}

// takes is an error if the program refuses the command.
func takes(command string, whole bool) error {
	var args []string
	for _, w := range word.FindAllString(ended.ReplaceAllString(command, ""), -1) {
		args = append(args, strings.Trim(w, `"'`))
	}
	root := newRoot(backend{now: time.Now}, terminal{io.Discard, &bytes.Buffer{}})
	root.InitDefaultCompletionCmd(args...)
	root.InitDefaultHelpCmd()
	cmd, rest, err := root.Find(args)
	if err != nil {
		return err
	}
	if cmd == root && len(args) > 0 && !strings.HasPrefix(args[0], "-") {
		return refuseUnknownCommand(root, args)
	}
	for i, a := range rest { // --flag of a sentence: its value is left out
		if !whole && i == len(rest)-1 && strings.HasPrefix(a, "--") && !strings.Contains(a, "=") {
			if f := cmd.Flags().Lookup(a[2:]); f != nil && f.NoOptDefVal == "" {
				rest = rest[:i]
			}
		}
	}
	cmd.InitDefaultHelpFlag()
	if err := cmd.ParseFlags(rest); err != nil {
		return err
	}
	if !whole {
		return nil
	}
	return cmd.ValidateArgs(cmd.Flags().Args())
}
