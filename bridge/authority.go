package bridge

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// authority vouches for the servers of a cluster. It is kept where pgbridge keys runs, and is on no node.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  []byte
}

const (
	authorityKeyFile = "ca.key"
	// authorityYears and certificateYears are how long certificates hold. One that ends within renewal is made anew.
	authorityYears, certificateYears = 20, 5
	renewal                          = 365 * 24 * time.Hour
)

// openAuthority reads the authority of a directory, or makes it.
func openAuthority(dir, cluster string, tell func(string)) (*authority, error) {
	certPath, keyPath := filepath.Join(dir, authorityFile), filepath.Join(dir, authorityKeyFile)
	text, err := os.ReadFile(certPath)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		tell("makes " + certPath + " and " + keyPath)
		return makeAuthority(certPath, keyPath, cluster)
	case err != nil:
		return nil, err
	}
	a := &authority{pem: text}
	if a.cert, err = parseCertificate(text); err != nil {
		return nil, fmt.Errorf("%s: %w", certPath, err)
	}
	if text, err = os.ReadFile(keyPath); err != nil {
		return nil, fmt.Errorf("%w; run this where the authority's key is, or in an empty directory for a new authority, which all nodes must get", err)
	}
	if block, _ := pem.Decode(text); block != nil {
		a.key, err = x509.ParseECPrivateKey(block.Bytes)
	}
	if err != nil || a.key == nil || !a.key.PublicKey.Equal(a.cert.PublicKey) {
		return nil, fmt.Errorf("%s is not the key of %s", keyPath, certPath)
	}
	return a, nil
}

func parseCertificate(text []byte) (*x509.Certificate, error) {
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, errors.New("no certificate in it")
	}
	return x509.ParseCertificate(block.Bytes)
}

func makeAuthority(certPath, keyPath, cluster string) (*authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template, err := newTemplate("pgbridge authority of cluster "+cluster, authorityYears)
	if err != nil {
		return nil, err
	}
	template.IsCA, template.BasicConstraintsValid, template.KeyUsage = true, true, x509.KeyUsageCertSign
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return nil, err
	}
	a := &authority{key: key, pem: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})}
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		return nil, err
	}
	if err := writeKey(keyPath, key); err != nil { // first: a certificate without its key would be of no use
		return nil, err
	}
	return a, writeFile(certPath, a.pem, 0o644)
}

func writeKey(path string, key *ecdsa.PrivateKey) error {
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return err
	}
	return writeFile(path, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}), 0o600)
}

// newTemplate begins a certificate with a random serial number, as RFC 5280 wants it.
func newTemplate(name string, years int) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, err
	}
	now := time.Now()
	return &x509.Certificate{SerialNumber: serial, Subject: pkix.Name{CommonName: name}, NotBefore: now.Add(-time.Hour), // of nodes whose clocks are behind
		NotAfter: now.AddDate(years, 0, 0), KeyUsage: x509.KeyUsageDigitalSignature}, nil
}

// certify makes the certificate of a node's server at these hosts, unless the one that is there will do.
func (a *authority) certify(k *nodeKeys, node string, hosts []string, tell func(string)) error {
	if len(hosts) == 0 {
		return errors.New("its URL in topology.nodes names no host")
	}
	if a.holds(k, hosts) {
		return nil
	}
	tell("makes " + k.file(certificateFile))
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	template, err := newTemplate("pgbridge node "+node, certificateYears)
	if err != nil {
		return err
	}
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	for _, h := range hosts {
		if ip := net.ParseIP(h); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, h)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, &key.PublicKey, a.key)
	if err != nil {
		return err
	}
	// A node that reads them between the two finds that they don't belong together, and says so.
	if err := writeKey(k.file(privateFile), key); err != nil {
		return err
	}
	return writeFile(k.file(certificateFile), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o644)
}

// holds reports whether a node's certificate is this authority's, of just these hosts, and lasts.
func (a *authority) holds(k *nodeKeys, hosts []string) bool {
	text, err := os.ReadFile(k.file(certificateFile))
	if err != nil {
		return false
	}
	if _, err := os.Stat(k.file(privateFile)); err != nil {
		return false
	}
	cert, err := parseCertificate(text)
	if err != nil || cert.CheckSignatureFrom(a.cert) != nil || time.Until(cert.NotAfter) < renewal {
		return false
	}
	var have []string
	for _, ip := range cert.IPAddresses {
		have = append(have, ip.String())
	}
	have = append(have, cert.DNSNames...)
	slices.Sort(have)
	return slices.Equal(have, hosts)
}
