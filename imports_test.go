package pgbridge_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/pgbridge/pgbridge"

// border is what the production code of one package may import.
type border struct {
	inside  []string // packages of this module; "*" for all but cmd, demo and integration
	outside []string // other modules, by prefix of the import path
	never   []string // of the standard library, by prefix
	pure    bool     // no I/O, wall clock, goroutine, logger or context
}

const (
	viper      = "github.com/spf13/viper"
	cobra      = "github.com/spf13/cobra"
	yaml       = "go.yaml.in/yaml/v3"
	pgx        = "github.com/jackc/pgx/v5"
	pglogrepl  = "github.com/jackc/pglogrepl"
	nats       = "github.com/nats-io"
	zstd       = "github.com/klauspost/compress"
	xxh3       = "github.com/zeebo/xxh3"
	chacha     = "golang.org/x/crypto/chacha20poly1305"
	errgroup   = "golang.org/x/sync"
	prometheus = "github.com/prometheus"
	otel       = "go.opentelemetry.io/otel"
	diff       = "github.com/sergi/go-diff"
	sysunix    = "golang.org/x/sys/unix"
)

// borders are the house's rules of who may know whom; imports go down, never sideways or up. A package
// that is not here is refused: a new one on the top level owns what no other can.
func borders() map[string]border {
	return map[string]border{
		"origin":   {pure: true},
		"wire":     {pure: true, inside: []string{"origin"}, outside: []string{zstd, xxh3, chacha}},
		"conflict": {pure: true, inside: []string{"wire", "origin"}},
		"topology": {pure: true, inside: []string{"origin"}},
		"rowkey":   {inside: []string{"wire"}, outside: []string{pgx, xxh3}},
		"capture":  {inside: []string{"wire", "origin", "rowkey"}, outside: []string{pglogrepl, pgx, errgroup}},
		"stream":   {inside: []string{"wire", "origin"}, outside: []string{nats, zstd, errgroup}},
		"apply":    {inside: []string{"wire", "origin", "conflict", "rowkey"}, outside: []string{pgx, errgroup}},
		// The names of policies are conflict's, those of graphs topology's.
		"config":  {inside: []string{"conflict", "topology"}, outside: []string{viper, yaml}},
		"console": {never: []string{"database/sql"}},
		"catalog": {inside: []string{"capture"}, outside: []string{pgx}},
		"doctor":  {inside: []string{"capture", "catalog", "config", "topology"}, outside: []string{pgx}},
		"bridge":  {inside: []string{"*"}, outside: []string{pgx, pglogrepl, nats, errgroup, prometheus, otel}},
		"demo": {inside: []string{"bridge", "config", "demo/editor", "integration/pgcluster"},
			outside: []string{pgx, errgroup, sysunix}},
		"demo/editor":  {outside: []string{pgx, errgroup, diff}},
		"cmd/pgbridge": {inside: []string{"bridge", "config", "demo"}, outside: []string{cobra, sysunix}},
	}
}

// harness names the folders of tests and tools, to which the borders do not apply.
func harness(dir string) bool {
	first, _, _ := strings.Cut(dir, "/")
	return first == "integration" || first == "scripts" || dir == "."
}

// impure are the packages of the standard library that a pure package must do without. Time as a value
// is fine; what reads the clock is found by clockCalls.
var impure = []string{"context", "crypto/rand", "database/sql", "io/fs", "io/ioutil", "log", "math/rand", "net", "os",
	"path/filepath", "runtime", "sync", "syscall", "testing", "unsafe"}

// clockCalls are the functions of package time that read the clock or wait.
var clockCalls = []string{"After", "AfterFunc", "NewTicker", "NewTimer", "Now", "Since", "Sleep", "Tick", "Until"}

// source is one parsed Go file.
type source struct {
	name string // path from the root, with slashes
	dir  string
	test bool
	ast  *ast.File
}

// sources parses every Go file of the module, other modules below it left out.
func sources(t *testing.T) (*token.FileSet, []source) {
	t.Helper()
	files := token.NewFileSet()
	var all []source
	err := filepath.WalkDir(".", func(name string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.IsDir() {
			return skipDir(name, entry.Name())
		}
		if !strings.HasSuffix(name, ".go") {
			return nil
		}
		parsed, err := parser.ParseFile(files, name, nil, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		name = filepath.ToSlash(name)
		all = append(all, source{name, path.Dir(name), strings.HasSuffix(name, "_test.go"), parsed})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return files, all
}

// skipDir leaves out what the go command leaves out, and build products.
func skipDir(name, last string) error {
	if name == "." {
		return nil
	}
	_, err := os.Stat(filepath.Join(name, "go.mod"))
	if err == nil || last == "testdata" || last == "build" || last == "node_modules" || strings.HasPrefix(last, ".") || strings.HasPrefix(last, "_") {
		return filepath.SkipDir
	}
	return nil
}

// imports lists the import paths of a file.
func (s source) imports(t *testing.T) []string {
	t.Helper()
	var paths []string
	for _, spec := range s.ast.Imports {
		imported, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			t.Fatal(err)
		}
		paths = append(paths, imported)
	}
	return paths
}

func TestImportsStayWithinTheirBorders(t *testing.T) {
	_, all := sources(t)
	for _, s := range all {
		if s.test || harness(s.dir) {
			continue
		}
		b, known := borders()[s.dir]
		if !known {
			t.Errorf("%s: package %s has no border here", s.name, s.dir)
			continue
		}
		for _, imported := range s.imports(t) {
			if !b.allows(imported) {
				t.Errorf("%s: package %s must not import %s", s.name, s.dir, imported)
			}
		}
	}
}

// allows reports whether the package behind b may import the path.
func (b border) allows(imported string) bool {
	if dir, inside := strings.CutPrefix(imported, module+"/"); inside {
		anyInside := slices.Equal(b.inside, []string{"*"}) && !harness(dir) && dir != "demo" && !strings.HasPrefix(dir, "cmd/")
		return anyInside || slices.Contains(b.inside, dir)
	}
	first, _, _ := strings.Cut(imported, "/")
	if strings.Contains(first, ".") {
		return slices.ContainsFunc(b.outside, func(prefix string) bool { return within(imported, prefix) })
	}
	isWithin := func(prefix string) bool { return within(imported, prefix) }
	return !slices.ContainsFunc(b.never, isWithin) && !(b.pure && slices.ContainsFunc(impure, isWithin))
}

// within reports whether an import path is prefix or lies below it.
func within(imported, prefix string) bool {
	return imported == prefix || strings.HasPrefix(imported, prefix+"/")
}

// TestBordersBite: the rules refuse what they are there for.
func TestBordersBite(t *testing.T) {
	for _, c := range []struct {
		dir, imported string
		want          bool
	}{
		{"origin", "time", true}, {"origin", "os", false}, {"origin", "math/rand/v2", false}, {"origin", module + "/wire", false},
		{"conflict", module + "/wire", true}, {"conflict", "log/slog", false}, {"conflict", "context", false},
		{"capture", pgx + "/pgconn", true}, {"capture", module + "/stream", false}, {"capture", nats + "/nats.go", false},
		{"stream", nats + "/nats.go/jetstream", true}, {"stream", pgx, false}, {"stream", module + "/apply", false},
		{"apply", module + "/conflict", true}, {"apply", nats + "/nats.go", false}, {"apply", module + "/capture", false},
		{"config", viper, true}, {"config", module + "/origin", false}, {"bridge", viper, false}, {"bridge", module + "/config", true},
		{"bridge", module + "/integration/pgtest", false}, {"bridge", module + "/demo", false}, {"cmd/pgbridge", viper, false}, {"cmd/pgbridge", module + "/capture", false},
		{"cmd/pgbridge", module + "/demo", true}, {"demo", module + "/apply", false}, {"demo", nats + "/nats.go", false},
		{"console", pgx, false}, {"console", "database/sql", false}, {"console", "net/http", true},
	} {
		if got := borders()[c.dir].allows(c.imported); got != c.want {
			t.Errorf("%s imports %s: allowed is %t", c.dir, c.imported, got)
		}
	}
}

// TestOnlyConfigKnowsViper also looks into tests and tools.
func TestOnlyConfigKnowsViper(t *testing.T) {
	_, all := sources(t)
	for _, s := range all {
		if s.dir != "config" && slices.Contains(s.imports(t), viper) {
			t.Errorf("%s: only config imports viper", s.name)
		}
	}
}

// TestPurePackagesHaveNoClockAndNoGoroutine finds what import paths do not show.
func TestPurePackagesHaveNoClockAndNoGoroutine(t *testing.T) {
	files, all := sources(t)
	for _, s := range all {
		if s.test || !borders()[s.dir].pure {
			continue
		}
		ast.Inspect(s.ast, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.GoStmt:
				t.Errorf("%s: a pure package starts no goroutine", files.Position(n.Pos()))
			case *ast.SelectorExpr:
				if x, ok := n.X.(*ast.Ident); ok && x.Name == "time" && slices.Contains(clockCalls, n.Sel.Name) {
					t.Errorf("%s: a pure package does not call time.%s", files.Position(n.Pos()), n.Sel.Name)
				}
			}
			return true
		})
	}
}

// TestNoInit: nothing runs by being imported.
func TestNoInit(t *testing.T) {
	files, all := sources(t)
	for _, s := range all {
		for _, d := range s.ast.Decls {
			if f, ok := d.(*ast.FuncDecl); ok && f.Recv == nil && f.Name.Name == "init" {
				t.Errorf("%s: no init()", files.Position(f.Pos()))
			}
		}
	}
}

// TestPackageComments: each package says what it owns, in one place.
func TestPackageComments(t *testing.T) {
	_, all := sources(t)
	commented := map[string][]string{}
	for _, s := range all {
		if s.test {
			continue
		}
		if s.ast.Doc == nil {
			commented[s.dir] = append(commented[s.dir], nil...) // so that a package without any is listed
			continue
		}
		commented[s.dir] = append(commented[s.dir], s.name)
		opening := "Package " + s.ast.Name.Name + " "
		if s.ast.Name.Name == "main" {
			opening = "Command " + path.Base(s.dir) + " "
		}
		if !strings.HasPrefix(s.ast.Doc.Text(), opening) {
			t.Errorf("%s: the package comment must begin with %q", s.name, opening)
		}
	}
	for dir, names := range commented {
		if len(names) != 1 {
			t.Errorf("package %s needs one package comment, has %d %v", dir, len(names), names)
		}
	}
}

// TestExportedNamesHaveComments: a doc comment begins with the name; one on a group of constants or
// variables serves all of it.
func TestExportedNamesHaveComments(t *testing.T) {
	files, all := sources(t)
	for _, s := range all {
		if s.test || s.ast.Name.Name == "main" {
			continue
		}
		for _, d := range s.ast.Decls {
			for _, name := range uncommented(d) {
				t.Errorf("%s: %s has no doc comment that begins with its name", files.Position(d.Pos()), name)
			}
		}
	}
}

// uncommented lists the exported names that a declaration leaves without a doc comment.
func uncommented(d ast.Decl) []string {
	switch d := d.(type) {
	case *ast.FuncDecl:
		if d.Name.IsExported() && exportedReceiver(d) && !begins(d.Doc, d.Name.Name) {
			return []string{d.Name.Name}
		}
	case *ast.GenDecl:
		var names []string
		for _, spec := range d.Specs {
			names = append(names, uncommentedSpec(d, spec)...)
		}
		return names
	}
	return nil
}

func uncommentedSpec(d *ast.GenDecl, spec ast.Spec) []string {
	switch spec := spec.(type) {
	case *ast.TypeSpec:
		if spec.Name.IsExported() && !begins(spec.Doc, spec.Name.Name) && !begins(d.Doc, spec.Name.Name) {
			return []string{spec.Name.Name}
		}
	case *ast.ValueSpec:
		if spec.Doc != nil || spec.Comment != nil || d.Doc != nil {
			return nil
		}
		var names []string
		for _, name := range spec.Names {
			if name.IsExported() {
				names = append(names, name.Name)
			}
		}
		return names
	}
	return nil
}

// exportedReceiver reports whether a function is one, or a method that others can see.
func exportedReceiver(f *ast.FuncDecl) bool {
	if f.Recv == nil {
		return true
	}
	kind := f.Recv.List[0].Type
	for {
		switch x := kind.(type) {
		case *ast.StarExpr:
			kind = x.X
		case *ast.IndexExpr:
			kind = x.X
		case *ast.IndexListExpr:
			kind = x.X
		case *ast.Ident:
			return x.IsExported()
		default:
			return false
		}
	}
}

// begins reports whether a comment opens with the name, after an article if it likes.
func begins(doc *ast.CommentGroup, name string) bool {
	if doc == nil {
		return false
	}
	text := doc.Text()
	for _, article := range []string{"A ", "An ", "The "} {
		text = strings.TrimPrefix(text, article)
	}
	first, _, _ := strings.Cut(text, "\n")
	return first == name || strings.HasPrefix(first, name) && !isWordByte(first[len(name)])
}

func isWordByte(b byte) bool {
	return b == '_' || b >= '0' && b <= '9' || b >= 'A' && b <= 'Z' || b >= 'a' && b <= 'z'
}
