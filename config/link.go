package config

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/pgbridge/pgbridge/topology"
)

// Access is how this node gets to the NATS server of another one. What is empty is as for all nodes.
type Access struct {
	// URL is where this node finds the server, if not at the one in the topology.
	URL string
	// CredsFile, NKeyFile, User with PasswordFile, or TokenFile say who this node is there; at most one kind.
	CredsFile, NKeyFile, User string
	// Password and Token are read from the files by Load.
	Password, PasswordFile string
	Token, TokenFile       string
	// CAFile holds the certificates of who vouches for the server, in place of the system's; CertFile and KeyFile this node's own.
	CAFile, CertFile, KeyFile string
}

// setting is one field of an Access, by its name in the file.
type setting struct {
	name  string
	value *string
}

func (a *Access) settings() []setting {
	return []setting{{"url", &a.URL}, {"creds_file", &a.CredsFile}, {"nkey_file", &a.NKeyFile}, {"user", &a.User},
		{"password_file", &a.PasswordFile}, {"token_file", &a.TokenFile}, {"ca_file", &a.CAFile}, {"cert_file", &a.CertFile}, {"key_file", &a.KeyFile}}
}

// accessNames lists the settings of an Access.
func accessNames() (all []string) {
	for _, s := range new(Access).settings() {
		all = append(all, s.name)
	}
	return all
}

// HasCredentials reports whether it says who this node is.
func (a *Access) HasCredentials() bool { return len(a.kinds()) > 0 }

// kinds lists the kinds of credentials that are given.
func (a *Access) kinds() (all []string) {
	for _, s := range []setting{{"creds_file", &a.CredsFile}, {"nkey_file", &a.NKeyFile}, {"user", &a.User}, {"token_file", &a.TokenFile}} {
		if *s.value != "" {
			all = append(all, s.name)
		}
	}
	return all
}

// accessError is a fault of one setting.
type accessError struct {
	setting string
	err     error
}

func (e *accessError) Error() string { return e.err.Error() }

// TLS reads the certificates; nil if there are none. An error names the file.
func (a *Access) TLS() (*tls.Config, error) {
	c := &tls.Config{MinVersion: tls.VersionTLS12}
	if a.CAFile != "" {
		text, err := os.ReadFile(a.CAFile)
		if err != nil {
			return nil, &accessError{"ca_file", fmt.Errorf("%w; name a file that the bridge can read", err)}
		}
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(text) {
			return nil, &accessError{"ca_file", fmt.Errorf("%s holds no certificate; write the certificate of the authority into it, as PEM", a.CAFile)}
		}
	}
	if a.CertFile != "" && a.KeyFile != "" {
		pair, err := tls.LoadX509KeyPair(a.CertFile, a.KeyFile)
		if err != nil {
			return nil, &accessError{"cert_file", fmt.Errorf("%w; name this node's certificate, and its key as key_file, both as PEM", err)}
		}
		c.Certificates = []tls.Certificate{pair}
	}
	if c.RootCAs == nil && c.Certificates == nil {
		return nil, nil
	}
	return c, nil
}

// readSecrets reads the files that hold secrets.
func (a *Access) readSecrets() error {
	for _, x := range []struct {
		setting    string
		file, into *string
	}{{"password_file", &a.PasswordFile, &a.Password}, {"token_file", &a.TokenFile, &a.Token}} {
		if *x.file == "" {
			continue
		}
		content, err := os.ReadFile(*x.file)
		if err != nil {
			return &accessError{x.setting, fmt.Errorf("%w; name a file that the bridge can read", err)}
		}
		if *x.into = strings.TrimSpace(string(content)); *x.into == "" {
			return &accessError{x.setting, fmt.Errorf("%s is empty; write the secret into it", *x.file)}
		}
	}
	return nil
}

// readLinkSecrets reads the secrets of all links.
func (l *loader) readLinkSecrets(cfg *Config) {
	for _, node := range slices.Sorted(maps.Keys(cfg.NATS.Links)) {
		a := cfg.NATS.Links[node]
		var fault *accessError
		if errors.As(a.readSecrets(), &fault) {
			l.refuse("nats.links."+node+"."+fault.setting, fault.Error())
		}
		cfg.NATS.Links[node] = a
	}
}

// checkAccess checks how other nodes are reached.
func (c *Config) checkAccess(ps *problems) {
	for _, node := range slices.Sorted(maps.Keys(c.NATS.Links)) {
		entry, a := "nats.links."+node, c.NATS.Links[node]
		edge := topology.IsEdge(c.Topology.Roles[node])
		switch _, known := c.Topology.Nodes[node]; {
		case len(c.Topology.Nodes) > 0 && !known:
			ps.add(entry, "%q is not in topology.nodes; the names there are %s", node, c.nodeNames())
			continue
		case node == c.Node && c.Embedded():
			ps.add(entry, "is this node, whose server is inside its bridge; remove the entry, or set nats.url")
			continue
		case node == c.Node && a.URL != "":
			ps.add(entry+".url", "is this node, whose server's URL is nats.url; remove one of them")
			continue
		case edge && (a.URL != "" || a.CAFile != "" || a.CertFile != ""):
			ps.add(entry, "is an edge, which nobody dials; what comes through its own connection needs neither url nor certificates: remove them")
			continue
		}
		c.checkOneAccess(ps, entry, &a)
	}
}

func (c *Config) checkOneAccess(ps *problems, entry string, a *Access) {
	if a.URL != "" {
		ps.checkURL(entry+".url", a.URL)
	}
	if kinds := a.kinds(); len(kinds) > 1 {
		ps.add(entry+"."+kinds[0], "given together with %s; keep one of them", strings.Join(kinds[1:], " and "))
	}
	for _, x := range []struct{ has, lacks setting }{
		{setting{"user", &a.User}, setting{"password_file", &a.PasswordFile}},
		{setting{"password_file", &a.PasswordFile}, setting{"user", &a.User}},
		{setting{"cert_file", &a.CertFile}, setting{"key_file", &a.KeyFile}},
		{setting{"key_file", &a.KeyFile}, setting{"cert_file", &a.CertFile}},
	} {
		if *x.has.value != "" && *x.lacks.value == "" {
			ps.add(entry+"."+x.has.name, "given without %s; give both", x.lacks.name)
		}
	}
	for _, s := range []setting{{"creds_file", &a.CredsFile}, {"nkey_file", &a.NKeyFile}} {
		if *s.value == "" {
			continue
		}
		if _, err := os.ReadFile(*s.value); err != nil {
			ps.add(entry+"."+s.name, "%v; name a file that the bridge can read", err)
		}
	}
	var fault *accessError
	if _, err := a.TLS(); errors.As(err, &fault) {
		ps.add(entry+"."+fault.setting, "%s", fault.Error())
	}
}

// readLinks reads nats.links from the file, as node.setting with texts.
func (d *document) readLinks(key string, n *yaml.Node) any {
	values := map[string]any{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		written, value := n.Content[i], resolve(n.Content[i+1])
		name := key + "." + written.Value
		d.lines[name] = written.Line
		switch {
		case !isName(written.Value):
			d.refuse(written, key, "%q is not a name; %s", written.Value, nameRule)
			continue
		case value.Kind != yaml.MappingNode:
			d.refuse(written, name, "wants settings below it, such as creds_file: /etc/pgbridge/%s.creds", written.Value)
			continue
		}
		for j := 0; j+1 < len(value.Content); j += 2 {
			field, text := value.Content[j], resolve(value.Content[j+1])
			at := written.Value + "." + field.Value
			d.lines[key+"."+at] = field.Line
			switch {
			case !slices.Contains(accessNames(), field.Value):
				d.refuse(field, name, "%q is unknown here; use %s", field.Value, orList(accessNames()))
			case text.Kind != yaml.ScalarNode || isNull(text):
				d.refuse(field, name+"."+field.Value, "wants one value")
			case values[at] != nil:
				d.refuse(field, name+"."+field.Value, "given twice; keep one")
			default:
				values[at] = text.Value
			}
		}
	}
	return values
}

// linksOf makes links of node.setting with texts.
func linksOf(values map[string]string) (map[string]Access, error) {
	links := map[string]Access{}
	for _, name := range slices.Sorted(maps.Keys(values)) {
		node, field, ok := strings.Cut(name, ".")
		if !ok || !slices.Contains(accessNames(), field) {
			return nil, fmt.Errorf("%q is unknown; write a node and one of %s, such as b.creds_file=/etc/pgbridge/b.creds", name, orList(accessNames()))
		}
		a := links[node]
		for _, s := range a.settings() {
			if s.name == field {
				*s.value = values[name]
			}
		}
		links[node] = a
	}
	return links, nil
}

// linkTexts is what linksOf reads.
func linkTexts(links map[string]Access) map[string]string {
	values := map[string]string{}
	for node, a := range links {
		for _, s := range a.settings() {
			if *s.value != "" {
				values[node+"."+s.name] = *s.value
			}
		}
	}
	return values
}
