package mqtt

import (
	"bytes"
	"crypto/pbkdf2"
	"crypto/sha512"
	"crypto/subtle"
	"encoding/base64"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"sync"
)

// passwords is a file as mosquitto_passwd writes it: a line for each user, with
// PBKDF2-HMAC-SHA512 ($7$) or salted SHA-512 ($6$).
type passwords struct {
	file string

	mu    sync.Mutex
	stamp stamp
	users map[string]secret
}

// stamp tells whether a file is another one.
type stamp struct {
	size int64
	at   int64
	file fs.FileInfo
}

func (s stamp) same(o stamp) bool {
	return s.size == o.size && s.at == o.at && (s.file == nil) == (o.file == nil) && (s.file == nil || os.SameFile(s.file, o.file))
}

type secret struct {
	line       string
	iterations int // 0: $6$
	salt, hash []byte
}

// Limits of a password file: what is beyond was not made by mosquitto_passwd.
const (
	maxPasswordFile = 1 << 20
	maxIterations   = 10_000_000
)

func loadPasswords(file string) (*passwords, error) {
	p := &passwords{file: file}
	_, err := p.reload()
	return p, err
}

// reload reads the file if it is another one. With an error what was known before
// stays.
func (p *passwords) reload() (changed bool, err error) {
	info, err := os.Stat(p.file)
	if err != nil {
		return false, fmt.Errorf("password file %s: %w", p.file, err)
	}
	now := stamp{info.Size(), info.ModTime().UnixNano(), info}
	p.mu.Lock()
	same := p.users != nil && p.stamp.same(now)
	p.mu.Unlock()
	if same {
		return false, nil
	}
	if info.Size() > maxPasswordFile {
		return false, fmt.Errorf("password file %s has %d bytes, and %d is the limit", p.file, info.Size(), maxPasswordFile)
	}
	b, err := os.ReadFile(p.file)
	if err != nil {
		return false, fmt.Errorf("password file %s: %w", p.file, err)
	}
	users, err := parsePasswords(b)
	if err != nil {
		return false, fmt.Errorf("password file %s: %w", p.file, err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stamp, p.users = now, users
	return true, nil
}

func parsePasswords(b []byte) (map[string]secret, error) {
	users := make(map[string]secret)
	n := 0
	for raw := range bytes.Lines(b) {
		n++
		line := strings.TrimRight(string(raw), "\r\n")
		if strings.TrimSpace(line) == "" || strings.HasPrefix(line, "#") {
			continue
		}
		name, hash, found := strings.Cut(line, ":")
		if !found || name == "" {
			return nil, fmt.Errorf("line %d is no USER:PASSWORD as mosquitto_passwd writes it", n)
		}
		s, err := parseSecret(hash)
		if err != nil {
			return nil, fmt.Errorf("line %d, user %q: %w", n, name, err)
		}
		s.line = line
		users[name] = s
	}
	return users, nil
}

func parseSecret(text string) (secret, error) {
	parts := strings.Split(text, "$")
	var s secret
	switch {
	case len(parts) == 5 && parts[0] == "" && parts[1] == "7":
		n, err := strconv.Atoi(parts[2])
		if err != nil || n < 1 || n > maxIterations {
			return s, fmt.Errorf("the number of iterations %q is not between 1 and %d", parts[2], maxIterations)
		}
		s.iterations = n
		parts = parts[3:]
	case len(parts) == 4 && parts[0] == "" && parts[1] == "6":
		parts = parts[2:]
	default:
		return s, fmt.Errorf("the password is neither PBKDF2 ($7$) nor SHA-512 ($6$): make it with mosquitto_passwd -H sha512-pbkdf2")
	}
	var err error
	if s.salt, err = base64.StdEncoding.DecodeString(parts[0]); err != nil || len(s.salt) == 0 {
		return s, fmt.Errorf("the salt is not base64: make the line anew with mosquitto_passwd")
	}
	if s.hash, err = base64.StdEncoding.DecodeString(parts[1]); err != nil || len(s.hash) != sha512.Size {
		return s, fmt.Errorf("the hash is not the base64 of %d bytes: make the line anew with mosquitto_passwd", sha512.Size)
	}
	return s, nil
}

// line is the user's entry, empty for a user that there is not; it changes when the
// password does.
func (p *passwords) line(name string) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.users[name].line
}

// check says whether a password is the user's. It takes as long for users that
// there are not.
func (p *passwords) check(name string, password []byte) bool {
	p.mu.Lock()
	s, known := p.users[name]
	p.mu.Unlock()
	if !known {
		s = secret{iterations: 101, salt: []byte("none"), hash: make([]byte, sha512.Size)} // as many as mosquitto_passwd takes
	}
	var hash []byte
	if s.iterations == 0 {
		sum := sha512.Sum512(append(bytes.Clone(password), s.salt...))
		hash = sum[:]
	} else {
		var err error
		if hash, err = pbkdf2.Key(sha512.New, string(password), s.salt, s.iterations, len(s.hash)); err != nil {
			return false
		}
	}
	return subtle.ConstantTimeCompare(hash, s.hash) == 1 && known
}
