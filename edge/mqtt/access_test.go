package mqtt

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"

	"github.com/holdfast-edge/holdfast/edge/mqtt/payload"
)

// passwordFile is made by mosquitto_passwd.
func passwordFile(t *testing.T, users ...string) string {
	t.Helper()
	file := write(t, filepath.Join(t.TempDir(), "passwords"), "")
	for _, u := range users {
		setPassword(t, file, u, "secret-of-"+u)
	}
	return file
}

func setPassword(t *testing.T, file, user, password string) {
	t.Helper()
	if out, err := run(t, "mosquitto_passwd", "-b", file, user, password); err != nil {
		t.Fatalf("mosquitto_passwd: %v: %s", err, out)
	}
}

func as(user string) func(*paho.ClientOptions) {
	return func(o *paho.ClientOptions) { o.SetUsername(user).SetPassword("secret-of-" + user) }
}

func TestWhoMayDoWhat(t *testing.T) {
	file := passwordFile(t, "plant/boiler", "plant/second", "dashboard")
	n := newNode(t, Config{PasswordFile: file}, thermostats("plant"), thermostat("plant", "boiler", desires("target", "21")), thermostat("plant", "second"))
	address := n.address()
	for name, change := range map[string]func(*paho.ClientOptions){
		"anonymous":      nil,
		"wrong password": func(o *paho.ClientOptions) { o.SetUsername("dashboard").SetPassword("guess") },
		"unknown user":   func(o *paho.ClientOptions) { o.SetUsername("nobody").SetPassword("guess") },
		"will elsewhere": func(o *paho.ClientOptions) {
			as("plant/boiler")(o)
			o.SetWill("holdfast/plant/second/state", "offline", 1, false)
		},
		"will in edgecore's name": func(o *paho.ClientOptions) { as("dashboard")(o); o.SetWill(boiler+"desired", "{}", 1, true) },
	} {
		if _, err := tryDial(t, address, "x", change); err == nil {
			t.Errorf("%s: connected", name)
		}
	}
	eventually(t, "refusals are logged", func() bool { return strings.Count(n.log.String(), "is refused") == 5 })

	c := dial(t, address, "boiler", as("plant/boiler"))
	c.sub(boiler + "desired/+")
	if got := c.next(boiler + "desired/target"); got != "21" {
		t.Errorf("its own desired values: %s", got)
	}
	c.sub(boiler + "result")
	for _, filter := range []string{"#", "holdfast/#", "holdfast/plant/second/desired", "holdfast/+/boiler/desired", "$share/g/#", "$SYS/#"} {
		token := c.Subscribe(filter, 1, nil)
		if !token.WaitTimeout(patience) {
			t.Fatal("no SUBACK")
		}
		for _, code := range token.(*paho.SubscribeToken).Result() {
			if code != 0x80 {
				t.Errorf("subscribed to %s: %#x", filter, code)
			}
		}
	}
	c.pub("holdfast/plant/second/report", `{"temperature":1}`) // acknowledged, so that it does not come again
	if a := unmarshal[payload.Answer](t, c.next(boiler+"result")); a.Code != 403 || a.Topic != "holdfast/plant/second/report" {
		t.Errorf("answer %+v", a)
	}
	c.pub(boiler+"report", `{"temperature":2}`)
	if got := n.reported("second", "temperature"); got != "" {
		t.Errorf("another device's twin was changed: %s", got)
	}
	c.Publish(boiler+"desired", 1, true, `{"target":9}`).WaitTimeout(patience)
	if out, err := run(t, "mosquitto_sub", "-p", port(address), "-u", "dashboard", "-P", "secret-of-dashboard", "-t", boiler+"desired", "-C", "1"); err != nil || strings.TrimSpace(out) != `{"target":21}` {
		t.Errorf("a device spoke in edgecore's name: %v: %s", err, out)
	}
	out, _ := run(t, "mosquitto_pub", "-V", "mqttv5", "-d", "-p", port(address), "-u", "plant/boiler", "-P", "secret-of-plant/boiler", "-q", "1", "-t", "other/topic", "-m", "x")
	contains(t, out, "RC:135") // not authorized

	p := dial(t, address, "dashboard", as("dashboard"))
	p.sub("holdfast/+/+/report")
	p.pub("holdfast/plant/second/set", `{"on":true}`)
	second := dial(t, address, "second", as("plant/second"))
	second.pub("holdfast/plant/second/report", `{"on":true}`)
	p.next("holdfast/plant/second/report")

	if _, err := tryDial(t, address, "dashboard", as("plant/second")); err == nil {
		t.Error("a device took the client id of another user")
	}
	if !p.IsConnectionOpen() {
		t.Error("the other user was cut off")
	}
	again := dial(t, address, "second", as("plant/second"))
	eventually(t, "the older connection ends", func() bool { return !second.IsConnectionOpen() })
	again.pub("holdfast/plant/second/report", `{"on":false}`)
}

func TestPasswordsMayChange(t *testing.T) {
	file := passwordFile(t, "plant/boiler", "dashboard")
	n := newNode(t, Config{PasswordFile: file})
	a, b := dial(t, n.address(), "a", as("plant/boiler")), dial(t, n.address(), "b", as("dashboard"))
	setPassword(t, file, "dashboard", "another")
	eventually(t, "the connection with the old password ends", func() bool { return !b.IsConnectionOpen() })
	if _, err := tryDial(t, n.address(), "b", as("dashboard")); err == nil {
		t.Error("the old password is still good")
	}
	dial(t, n.address(), "b", func(o *paho.ClientOptions) { o.SetUsername("dashboard").SetPassword("another") })
	write(t, file, "broken")
	eventually(t, "a broken file is logged", func() bool { return strings.Contains(n.log.String(), "line 1") })
	a.pub(boiler+"report", `{"on":true}`)
	dial(t, n.address(), "c", as("plant/boiler"))
}

func TestPasswordFormats(t *testing.T) {
	file := write(t, filepath.Join(t.TempDir(), "p"), "# people\n\n")
	if out, err := run(t, "mosquitto_passwd", "-b", "-H", "sha512", file, "six", "secret"); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	setPassword(t, file, "seven", "secret")
	p, err := loadPasswords(file)
	must(t, err)
	for user, want := range map[string]bool{"six": true, "seven": true, "eight": false} {
		if got := p.check(user, []byte("secret")); got != want {
			t.Errorf("user %s: %t", user, got)
		}
		if p.check(user, []byte("Secret")) || p.check(user, nil) {
			t.Errorf("user %s: a wrong password is good", user)
		}
	}
	for line, says := range map[string]string{
		"x":                 "no USER:PASSWORD",
		"x:plain":           "mosquitto_passwd -H sha512-pbkdf2",
		"x:$7$0$YQ==$YQ==":  "iterations",
		"x:$7$99$*$YQ==":    "salt",
		"x:$6$YQ==$YQ==":    "hash",
		"x:$argon2id$a$b$c": "mosquitto_passwd -H sha512-pbkdf2",
	} {
		if _, err := parsePasswords([]byte(line)); err == nil {
			t.Errorf("%q is read", line)
		} else {
			contains(t, err.Error(), "line 1", says)
		}
	}
}

func FuzzPasswords(f *testing.F) {
	f.Add("a:$7$101$YQ==$YQ==\n# b\nc:$6$YQ==$YQ==")
	f.Fuzz(func(t *testing.T, text string) {
		users, err := parsePasswords([]byte(text))
		if (users == nil) == (err == nil) {
			t.Errorf("%v, %v", users, err)
		}
	})
}

// ca makes certificates.
type ca struct {
	t    *testing.T
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newCA(t *testing.T) *ca {
	c := &ca{t: t, dir: t.TempDir()}
	c.cert, c.key = c.make("ca", nil, nil)
	return c
}

func (c *ca) make(name string, parent *x509.Certificate, parentKey *ecdsa.PrivateKey) (*x509.Certificate, *ecdsa.PrivateKey) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(c.t, err)
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<60))
	must(c.t, err)
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, BasicConstraintsValid: true, IsCA: parent == nil,
		KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	if parent == nil {
		parent, parentKey = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, parentKey)
	must(c.t, err)
	private, err := x509.MarshalPKCS8PrivateKey(key)
	must(c.t, err)
	base := strings.ReplaceAll(name, "/", "-")
	write(c.t, filepath.Join(c.dir, base+".crt"), string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})))
	write(c.t, filepath.Join(c.dir, base+".key"), string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})))
	cert, err := x509.ParseCertificate(der)
	must(c.t, err)
	return cert, key
}

// issue returns the files of a certificate and its key.
func (c *ca) issue(name string) (cert, key string) {
	c.make(name, c.cert, c.key)
	base := filepath.Join(c.dir, strings.ReplaceAll(name, "/", "-"))
	return base + ".crt", base + ".key"
}

func (c *ca) file() string { return filepath.Join(c.dir, "ca.crt") }

func (c *ca) client(name string) func(*paho.ClientOptions) {
	config := &tls.Config{RootCAs: x509.NewCertPool()}
	config.RootCAs.AddCert(c.cert)
	if name != "" {
		pair, err := tls.LoadX509KeyPair(c.issue(name))
		must(c.t, err)
		config.Certificates = []tls.Certificate{pair}
	}
	return func(o *paho.ClientOptions) { o.SetTLSConfig(config) }
}

func TestClientCertificatesSayWhoSomebodyIs(t *testing.T) {
	authority := newCA(t)
	cert, key := authority.issue("broker")
	n := newNode(t, Config{TLSCert: cert, TLSKey: key, ClientCA: authority.file()})
	address := "ssl://" + n.address()
	if _, err := tryDial(t, address, "x", authority.client("")); err == nil {
		t.Error("connected without a certificate")
	}
	other := newCA(t)
	if _, err := tryDial(t, address, "x", func(o *paho.ClientOptions) {
		authority.client("")(o)
		pair, err := tls.LoadX509KeyPair(other.issue("plant/boiler"))
		must(t, err)
		o.TLSConfig.Certificates = []tls.Certificate{pair}
	}); err == nil {
		t.Error("connected with a certificate of another CA")
	}
	c := dial(t, address, "boiler", authority.client("plant/boiler"))
	c.pub(boiler+"report", `{"on":true}`)
	token := c.Subscribe("#", 1, nil)
	token.WaitTimeout(patience)
	if token.(*paho.SubscribeToken).Result()["#"] != 0x80 {
		t.Error("a device, by its certificate, may subscribe to everything")
	}
	dial(t, address, "program", authority.client("dashboard")).sub("#")
	out, err := run(t, "mosquitto_pub", "-h", "127.0.0.1", "-p", port(n.address()), "--cafile", authority.file(),
		"--cert", filepath.Join(authority.dir, "dashboard.crt"), "--key", filepath.Join(authority.dir, "dashboard.key"),
		"-q", "1", "-t", boiler+"report", "-m", `{"temperature":3}`)
	if err != nil || n.reported("boiler", "temperature") != "3" {
		t.Errorf("mosquitto_pub with a certificate: %v: %s", err, out)
	}
}

func TestConfigsThatCannotBe(t *testing.T) {
	for says, c := range map[string]Config{
		"set passwordFile":       {Listen: []string{"0.0.0.0:1883"}},
		"no HOST:PORT":           {Listen: []string{"1883"}},
		"belong together":        {TLSCert: "a"},
		"clientCA needs":         {ClientCA: "a"},
		"there is no mode":       {Mode: "sometimes"},
		"needs broker":           {Mode: External},
		"none of tcp":            {Broker: "amqp://x:1"},
		"set user and password":  {Broker: "tcp://a:b@x:1"},
		"is not TLS":             {Broker: "tcp://x:1", CAFile: "a"},
		"no such file":           {PasswordFile: "/nowhere"},
		"such as tcp://127.0.0.": {Broker: "localhost"},
	} {
		if _, err := New(Options{Config: c}); err == nil {
			t.Errorf("%+v is allowed", c)
		} else {
			contains(t, err.Error(), says)
		}
	}
	if _, err := New(Options{Config: Config{Listen: []string{"[::1]:1883", "localhost:1884", "127.0.0.2:1"}}}); err != nil {
		t.Error(err)
	}
}
