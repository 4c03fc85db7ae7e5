package config

import (
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/spf13/viper"
)

// Load reads the file at path, lets the PGBRIDGE_ variables of the environment and then overrides (dotted
// key to text) prevail, reads the secret files, derives what depends on other keys and checks all of it.
// An empty path means no file. A variable that is set to nothing counts as not set.
//
// Every error is an [*Error] with all that is wrong, except that a file that is not YAML is reported
// alone.
func Load(path string, overrides map[string]string) (*Config, error) {
	l := &loader{viper: viper.New(), overrides: overrides, wrong: map[string]bool{}}
	if !l.readFile(path) {
		return nil, l.problems.err()
	}
	l.readEnvironment(os.Environ())
	l.readOverrides()
	cfg := l.decode()
	l.readSecrets(cfg)
	l.readLinkSecrets(cfg)
	cfg.derive()
	l.refuseUntold(cfg.problems())
	if err := l.problems.err(); err != nil {
		return nil, err
	}
	return cfg, nil
}

// loader lays the sources over each other and remembers where each value came from.
type loader struct {
	viper     *viper.Viper
	path      string
	lines     map[string]int // dotted key -> line in the file
	overrides map[string]string
	problems  problems
	wrong     map[string]bool // keys whose problem is told already; "" for the file itself
}

// mark remembers that something is wrong with a key or an entry below it.
func (l *loader) mark(name string) {
	if k, ok := keyOf(name); ok {
		name = k.name
	}
	l.wrong[name] = true
}

// refuse notes a problem of a key with the place its value came from.
func (l *loader) refuse(key, text string) {
	l.mark(key)
	l.problems = append(l.problems, Problem{Place: l.place(key), Key: key, Text: text})
}

// refuseUntold notes the problems of those keys that had none before: a value that could not be read
// is not also missing.
func (l *loader) refuseUntold(found problems) {
	told := maps.Clone(l.wrong)
	for _, p := range found {
		if k, _ := keyOf(p.Key); !told[k.name] {
			l.refuse(p.Key, p.Text)
		}
	}
}

// readFile lays the file over the defaults; it reports whether going on makes sense.
func (l *loader) readFile(path string) bool {
	for _, k := range keys() {
		l.viper.SetDefault(k.name, k.initial)
	}
	if path == "" {
		return true
	}
	d := readDocument(path)
	l.path, l.lines = path, d.lines
	for _, p := range d.problems {
		l.mark(p.Key)
		l.problems = append(l.problems, p)
	}
	if l.wrong[""] {
		return false
	}
	if err := l.viper.MergeConfigMap(d.values); err != nil {
		l.problems = append(l.problems, Problem{Place: path, Text: err.Error()})
		return false
	}
	return true
}

// readEnvironment binds each key's variable and refuses those that belong to no key.
func (l *loader) readEnvironment(environ []string) {
	for _, k := range keys() {
		// BindEnv fails only when it is given no name.
		_ = l.viper.BindEnv(k.name, k.env())
	}
	l.problems = append(l.problems, unknownVariables(environ)...)
}

// readOverrides lays the command line over everything else, in the order of the names.
func (l *loader) readOverrides() {
	for _, name := range slices.Sorted(maps.Keys(l.overrides)) {
		if _, known := find(name); !known {
			l.problems = append(l.problems, Problem{Place: "--set", Key: name,
				Text: "unknown key; the nearest one is " + nearest(name, names())})
			continue
		}
		l.viper.Set(name, l.overrides[name])
	}
}

// decode turns the winning texts into a Config; what cannot be read keeps its zero value.
func (l *loader) decode() *Config {
	cfg := new(Config)
	for _, k := range keys() {
		raw := l.viper.Get(k.name)
		if size, ok := k.field(cfg).(*Size); ok && k.derived != "" && raw == "" {
			*size = derived
			continue
		}
		err := decode(k.field(cfg), raw)
		if err != nil && !l.wrong[k.name] {
			l.refuse(k.name, err.Error())
		}
	}
	return cfg
}

// readSecrets replaces each *_file key's secret by the content of the file.
func (l *loader) readSecrets(cfg *Config) {
	for _, k := range keys() {
		name := *fileField(k, cfg)
		if name == "" {
			continue
		}
		direct, _ := find(strings.TrimSuffix(k.name, "_file"))
		secret := direct.field(cfg).(*string)
		if *secret != "" {
			l.refuse(k.name, "given together with "+direct.name+"; keep one of them")
			continue
		}
		content, err := os.ReadFile(name)
		if err != nil {
			l.refuse(k.name, err.Error()+"; name a file that the bridge can read")
			l.wrong[direct.name] = true
			continue
		}
		if *secret = strings.TrimSpace(string(content)); *secret == "" {
			l.refuse(k.name, name+" is empty; write the secret into it")
			l.wrong[direct.name] = true
		}
	}
}

// fileField gives the field of a key that names a secret file, an empty one for all others.
func fileField(k key, cfg *Config) *string {
	if !k.file {
		return new(string)
	}
	return k.field(cfg).(*string)
}

// place says where the value of a key, or of an entry below it, came from; the file itself for a key
// that nobody gave.
func (l *loader) place(name string) string {
	k, _ := keyOf(name)
	if _, set := l.overrides[k.name]; set {
		return "--set"
	}
	if os.Getenv(k.env()) != "" {
		return k.env()
	}
	if line, ok := l.lines[name]; ok {
		return (&document{path: l.path}).place(line)
	}
	if line, ok := l.lines[k.name]; ok {
		return (&document{path: l.path}).place(line)
	}
	return l.path
}
