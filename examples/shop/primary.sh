# The first database server. It acknowledges a commit when its replica has the commit on disk.
set -eu
cd /etc/postgresql/15/main
cat > conf.d/shop.conf <<END
listen_addresses = '*'
END
echo 'host all,replication all samenet trust' >> pg_hba.conf
systemctl enable --now postgresql
su postgres -c "createuser --superuser shop && createdb shop && psql -c 'CREATE TABLE orders (key text PRIMARY KEY)' shop"
