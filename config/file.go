package config

import (
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"

	"go.yaml.in/yaml/v3"
)

// document is a configuration file, read into the texts that were written: a node named 007 or no stays
// what it is, whatever YAML makes of it.
type document struct {
	path     string
	values   map[string]any // nested as in the file; leaves are string, []string or map[string]any of string
	lines    map[string]int // dotted key -> line
	problems problems
}

// readDocument reads the file at path. What is wrong with the text is in the document's problems.
func readDocument(path string) *document {
	d := &document{path: path, values: map[string]any{}, lines: map[string]int{}}
	f, err := os.Open(path)
	if err != nil {
		d.problems.add("", "%v; name a readable file with --config, or set every key by %s variables", err, envPrefix)
		return d
	}
	defer f.Close() // only read
	d.parse(f)
	return d
}

// parse fills the document from YAML text.
func (d *document) parse(r io.Reader) {
	var root, more yaml.Node
	decoder := yaml.NewDecoder(r)
	switch err := decoder.Decode(&root); {
	case errors.Is(err, io.EOF):
		return // an empty file sets nothing
	case err != nil:
		d.refuseSyntax(err)
		return
	}
	if err := decoder.Decode(&more); !errors.Is(err, io.EOF) {
		d.refuse(&more, "", "a second YAML document begins here; keep one")
	}
	top := resolve(root.Content[0])
	switch {
	case isNull(top):
	case top.Kind != yaml.MappingNode:
		d.refuse(top, "", "the file must hold keys, such as cluster: shop")
	default:
		d.readGroup(top, "", d.values)
	}
}

// refuse notes a problem at a node's line.
func (d *document) refuse(n *yaml.Node, key, format string, args ...any) {
	d.problems = append(d.problems, Problem{Place: d.place(n.Line), Key: key, Text: fmt.Sprintf(format, args...)})
}

func (d *document) place(line int) string { return fmt.Sprintf("%s:%d", d.path, line) }

// yamlLine finds the line in the YAML package's errors, which have no type of their own.
var yamlLine = regexp.MustCompile(`^yaml: (?:line (\d+): )?`)

// starWithoutQuotes matches what the YAML package says of *.* and the like: it reads an alias.
var starWithoutQuotes = regexp.MustCompile(`unknown anchor|expected alphabetic or numeric character`)

// refuseSyntax notes that the file is not YAML.
func (d *document) refuseSyntax(err error) {
	place, text := d.path, err.Error()
	if m := yamlLine.FindStringSubmatch(text); m != nil {
		text = strings.TrimPrefix(text, m[0])
		if m[1] != "" {
			place += ":" + m[1]
		}
	}
	mend := ""
	if starWithoutQuotes.MatchString(text) {
		mend = `; a value that begins with * needs quotes, such as "*.*"`
	}
	d.problems = append(d.problems, Problem{Place: place, Text: "not YAML: " + text + mend})
}

// readGroup reads the keys below a dotted prefix into values.
func (d *document) readGroup(n *yaml.Node, prefix string, values map[string]any) {
	first := map[string]int{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		written, value := n.Content[i], resolve(n.Content[i+1])
		name := prefix + written.Value
		if line, twice := first[name]; twice {
			d.refuse(written, name, "given twice, first on line %d; keep one", line)
			continue
		}
		first[name] = written.Line
		d.lines[name] = written.Line
		if isGroup(name) {
			d.readSubgroup(value, name, written.Value, values)
			continue
		}
		k, known := find(name)
		if !known || strings.Contains(written.Value, ".") {
			d.refuseUnknown(written, value, name)
			continue
		}
		if raw := d.readValue(k, value); raw != nil {
			values[written.Value] = raw
		}
	}
}

// readSubgroup reads the keys of a group into a map of its own.
func (d *document) readSubgroup(n *yaml.Node, name, last string, values map[string]any) {
	switch {
	case isNull(n):
	case n.Kind != yaml.MappingNode:
		d.refuse(n, name, "is a group of keys, not a value; write %s: below it", lastPart(membersOf(name)[0]))
	default:
		inner := map[string]any{}
		d.readGroup(n, name+".", inner)
		values[last] = inner
	}
}

// refuseUnknown notes an unknown key and names the nearest known one.
func (d *document) refuseUnknown(written, value *yaml.Node, name string) {
	if _, known := find(name); known {
		group, last := name[:strings.LastIndexByte(name, '.')], lastPart(name)
		d.refuse(written, name, "keys are nested; write %s: below %s:", last, group)
		return
	}
	candidates := names()
	if value.Kind == yaml.MappingNode {
		candidates = append(groups(), candidates...)
	}
	d.refuse(written, name, "unknown key; the nearest one is %s", nearest(name, candidates))
}

// readValue gives the text, list or map that was written for a key; nil if nothing usable was.
func (d *document) readValue(k key, n *yaml.Node) any {
	if d.hasTag(k.name, n) || isNull(n) {
		return nil
	}
	switch field := k.field(new(Config)).(type) {
	case *[]string:
		if n.Kind == yaml.SequenceNode {
			return d.readList(k.name, n)
		}
	case *map[string]string:
		if n.Kind == yaml.MappingNode {
			return d.readMap(k.name, n)
		}
		d.refuse(n, k.name, "wants names with values below it, such as a: nats://127.0.0.1:4222")
		return nil
	case *map[string]Access:
		if n.Kind == yaml.MappingNode {
			return d.readLinks(k.name, n)
		}
		d.refuse(n, k.name, "wants nodes with settings below them, such as b: {creds_file: /etc/pgbridge/b.creds}")
		return nil
	case *[]TablePolicy:
		if n.Kind == yaml.MappingNode {
			return d.readPolicies(k.name, n)
		}
		if n.Kind != yaml.ScalarNode {
			d.refuse(n, k.name, "wants tables with policies below it, such as app.stock: {columns: {quantity: delta}}")
			return nil
		}
		return n.Value
	default:
		if n.Kind != yaml.ScalarNode {
			d.refuse(n, k.name, "wants one value (%s), not a list or a group", typeName(field))
			return nil
		}
	}
	if n.Kind != yaml.ScalarNode {
		d.refuse(n, k.name, "wants a list")
		return nil
	}
	return n.Value
}

// hasTag refuses !name, which YAML reads as a type and an operator means as an excluded table.
func (d *document) hasTag(key string, n *yaml.Node) bool {
	if n.Style&yaml.TaggedStyle == 0 || strings.HasPrefix(n.Tag, "!!") {
		return false
	}
	d.refuse(n, key, "write %q in quotes", strings.TrimSpace(n.Tag+" "+n.Value))
	return true
}

// readList reads a list of texts.
func (d *document) readList(key string, n *yaml.Node) any {
	list := make([]string, 0, len(n.Content))
	for _, entry := range n.Content {
		entry = resolve(entry)
		switch {
		case d.hasTag(key, entry):
		case entry.Kind != yaml.ScalarNode || isNull(entry):
			d.refuse(entry, key, "wants texts in its list")
		default:
			list = append(list, entry.Value)
		}
	}
	return list
}

// readMap reads names with texts. A name with capitals is refused here, as viper folds them.
func (d *document) readMap(key string, n *yaml.Node) any {
	values := map[string]any{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		written, value := n.Content[i], resolve(n.Content[i+1])
		name := key + "." + written.Value
		_, twice := values[written.Value]
		switch {
		case !isName(written.Value):
			d.refuse(written, key, "%q is not a name; %s", written.Value, nameRule)
		case twice:
			d.refuse(written, name, "given twice, first on line %d; keep one", d.lines[name])
		case value.Kind != yaml.ScalarNode || isNull(value):
			d.refuse(written, name, "wants one value")
		default:
			d.lines[name] = written.Line
			values[written.Value] = value.Value
		}
	}
	return values
}

// resolve follows an alias to what it stands for.
func resolve(n *yaml.Node) *yaml.Node {
	if n.Kind == yaml.AliasNode {
		return n.Alias
	}
	return n
}

// isNull reports whether nothing was written after the colon.
func isNull(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null" }
