package config

import (
	"flag"
	"fmt"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write config.example.yaml and the table of docs/configure.md anew")

const (
	examplePath = "../config.example.yaml"
	docPath     = "../docs/configure.md"
)

// TestExampleShowsEveryKey: config.example.yaml is the key table, written out.
func TestExampleShowsEveryKey(t *testing.T) {
	requireFile(t, examplePath, exampleText())
}

// TestExampleHoldsTheDefaults: the example means the same as the few keys in it that have no default.
func TestExampleHoldsTheDefaults(t *testing.T) {
	example, err := Load(examplePath, nil)
	if err != nil {
		t.Fatal(err)
	}
	needed := map[string]string{}
	for _, k := range keys() {
		if k.sample != "" {
			needed[k.name] = k.sample
		}
	}
	if len(needed) > 4 {
		t.Errorf("%d keys have no default: %v", len(needed), needed)
	}
	least, err := Load("", needed)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(example, least) {
		t.Errorf("the example means\n%s\nthe defaults\n%s", example, least)
	}
}

// TestDocumentationListsEveryKey: the table of docs/configure.md is the key table.
func TestDocumentationListsEveryKey(t *testing.T) {
	const begin, end = "<!-- keys: begin -->\n", "<!-- keys: end -->\n"
	text, err := os.ReadFile(docPath)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(text), begin)
	_, after, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		t.Fatalf("%s lacks %q or %q", docPath, begin, end)
	}
	if !strings.Contains(before, tenLines) {
		t.Errorf("%s does not begin with the ten lines that are enough", docPath)
	}
	requireFile(t, docPath, before+begin+documentationTable()+end+after)
}

// requireFile compares a file with what it should hold, or writes it under -update.
func requireFile(t *testing.T, path, want string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(path, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != want {
		t.Errorf("%s differs from the key table; run go test ./config -update", path)
	}
}

// exampleText writes the key table as a configuration file.
func exampleText() string {
	var b strings.Builder
	b.WriteString(`# Every setting of pgbridge with its default and what it is for. Only cluster, node, postgres.dsn and
# topology.nodes must be given. PGBRIDGE_POSTGRES_DSN in the environment overrides postgres.dsn here, and
# so on for each key. Durations: 5ms, 10s, 2h, 30d. Sizes: 256KiB, 10GiB. See docs/configure.md.
# Written by: go test ./config -update
`)
	var open []string // the groups around the last key
	for _, k := range keys() {
		parts := strings.Split(k.name, ".")
		path := parts[:len(parts)-1]
		if len(path) == 0 || len(open) == 0 || path[0] != open[0] {
			b.WriteString("\n")
		}
		for depth, group := range path {
			if depth >= len(open) || !slices.Equal(path[:depth+1], open[:depth+1]) {
				fmt.Fprintf(&b, "%s%s:\n", indent(depth), group)
			}
		}
		open = path
		writeExample(&b, k, parts[len(parts)-1], len(path))
	}
	return b.String()
}

// writeExample writes one key with its comment.
func writeExample(b *strings.Builder, k key, last string, depth int) {
	why := k.why
	if len(k.allowed) > 1 {
		why += " One of " + strings.Join(k.allowed, ", ") + "."
	}
	fmt.Fprintf(b, "%s# %s\n%s%s:", indent(depth), why, indent(depth), last)
	text := k.initial
	switch {
	case k.sample != "":
		text = k.sample
	case k.name == "data_dir":
		text = "/var/lib/pgbridge/a"
	case k.name == "nats.embedded.listen":
		text = "127.0.0.1:4222"
	case k.name == "stream.absent_bytes":
		text = "4GiB"
	}
	switch k.field(new(Config)).(type) {
	case *map[string]string:
		if text == "" {
			b.WriteString(" {}\n")
			return
		}
		b.WriteString("\n")
		for _, part := range splitList(text) {
			fmt.Fprintf(b, "%s%s\n", indent(depth+1), strings.Replace(part, "=", ": ", 1))
		}
	case *[]string:
		list := strings.Join(splitList(text), `", "`)
		if list != "" {
			list = `"` + list + `"`
		}
		fmt.Fprintf(b, " [%s]\n", list)
	case *[]TablePolicy, *map[string]Access:
		b.WriteString(" {}\n")
	default:
		if text == "" {
			text = `""`
		}
		fmt.Fprintf(b, " %s\n", text)
	}
}

func indent(depth int) string { return strings.Repeat("  ", depth) }

// documentationTable writes the key table as Markdown.
func documentationTable() string {
	var b strings.Builder
	b.WriteString("| key | value | default | what for |\n|---|---|---|---|\n")
	for _, k := range keys() {
		name := "`" + k.name + "`"
		if k.live {
			name += " *reload*"
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s |\n", name, valueColumn(k), defaultColumn(k), k.why)
	}
	return b.String()
}

func valueColumn(k key) string {
	switch kind := typeName(k.field(new(Config))); {
	case k.allowed != nil:
		return "`" + strings.Join(k.allowed, "`, `") + "`"
	case k.file:
		return "path"
	case k.most != "":
		return fmt.Sprintf("%s, %s to %s", kind, k.least, k.most)
	case k.least != "" && !strings.HasPrefix(k.least, "0"):
		return fmt.Sprintf("%s, %s or more", kind, k.least)
	default:
		return kind
	}
}

func defaultColumn(k key) string {
	switch {
	case k.required:
		return "required"
	case k.name == "postgres.dsn":
		return "this or `dsn_file` is required"
	case k.derived != "":
		return strings.NewReplacer("<", "\\<", ">", "\\>").Replace(k.derived)
	case k.initial == "":
		return ""
	}
	return "`" + k.initial + "`"
}
