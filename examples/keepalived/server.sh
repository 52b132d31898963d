# A web server. The first one has the virtual address as long as the other one hears its advertisements.
set -eu
me=$(hostname)
case $me in *-1) priority=150 ;; *) priority=100 ;; esac
card=$(ip -o -4 address show | awk '/10\.180\.0\./ { print $2; exit }')
cat > /etc/keepalived/keepalived.conf <<END
vrrp_instance front {
  interface $card
  virtual_router_id 51
  priority $priority
  advert_int 1
  virtual_ipaddress {
    10.180.0.200/24
  }
}
END
echo "$me" > /var/www/html/index.html
systemctl enable --now nginx keepalived
